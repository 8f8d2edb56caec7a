"""The statements under test: each is run by the function that the system itself calls, in a transaction that is rolled
back; what it sent to PostgreSQL is caught on the way and explained there."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from db import chunks, jobs, shares
from db.access import usage
from db.chunks import Held
from db.connection import Database
from db.native import heavy
from db.upkeep import looks

RUNS = 30
MODELS = [f"model-{number}" for number in range(8)]
LEASE_SECONDS = 15.0
PAGE_JOBS = 20

Action = Callable[[Session], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of the whole call: Python, the way to PostgreSQL and back, and the statement; median and worst."""

    median_ms: float
    worst_ms: float


def _claim(service_class: str, *, takes_oldest: bool = False) -> Action:
    return lambda session: chunks.claim(
        session,
        owner="benchmark",
        service_class=service_class,
        models=MODELS,
        lease_seconds=LEASE_SECONDS,
        takes_oldest=takes_oldest,
    )


ACTIONS: Mapping[str, Action] = {
    "claim_batch": _claim("batch"),
    "claim_batch_oldest": _claim("batch", takes_oldest=True),
    "claim_online": _claim("online"),
    "dispatch_backlog": lambda session: chunks.backlog(session, window=8),
    "reconcile_clamp": lambda session: chunks.clamp(session, lease_seconds=LEASE_SECONDS, longest_seconds=60.0),
    "reconcile_expire": chunks.expire,
    "reconcile_wake_delayed": chunks.wake_delayed,
    "reconcile_overdue": looks.overdue,
    "reconcile_ended": looks.note_ended,
    "reconcile_look": lambda session: looks.look(session, room=16),
    "reconcile_restore_shares": shares.restore,
    "reconcile_forget_shares": lambda session: shares.forget(session, older_than=timedelta(hours=1)),
    "reconcile_fold_usage": lambda session: usage.fold(session, limit=10_000),
    "reconcile_heavy_waiting": heavy.waiting,
    "renew_leases": lambda session: chunks.renew(session, "worker", _held(session), LEASE_SECONDS),
    "progress_of_a_page": lambda session: jobs.progress(session, _page(session)),
}


def _held(session: Session) -> list[Held]:
    """The chunks of one worker."""
    return [Held(number, 1) for number in session.info.setdefault("running", [])]


def _page(session: Session) -> list[int]:
    """The jobs of one page of a list."""
    pages: list[int] = session.info.setdefault("page", [])
    return pages


@contextmanager
def rolled_back(database: Database, info: Mapping[str, Any]) -> Iterator[Session]:
    with database.engine.connect() as connection, connection.begin() as transaction:
        session = Session(connection, join_transaction_mode="create_savepoint")
        session.info.update(info)
        try:
            yield session
        finally:
            session.close()
            transaction.rollback()


def time_action(database: Database, action: Action, info: Mapping[str, Any]) -> Timing:
    """The first run, which prepares the statement, does not count."""
    samples = []
    for _ in range(RUNS + 1):
        with rolled_back(database, info) as session:
            session.connection()
            begun = time.perf_counter()
            action(session)
            samples.append(1000 * (time.perf_counter() - begun))
    return Timing(statistics.median(samples[1:]), max(samples[1:]))


def explain(database: Database, action: Action, info: Mapping[str, Any]) -> list[str]:
    """The plan of each statement that the action sends, with times and buffers."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        sent.append((statement, values))

    with rolled_back(database, info) as session:
        event.listen(database.engine, "before_cursor_execute", note)
        try:
            action(session)
        finally:
            event.remove(database.engine, "before_cursor_execute", note)
    plans = []
    for statement, values in sent:
        if statement.lstrip().upper().startswith(("SAVEPOINT", "RELEASE", "ROLLBACK")):
            continue
        with rolled_back(database, info) as session:
            rows = session.connection().exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", values)
            plans.append("\n".join(row[0] for row in rows))
    return plans
