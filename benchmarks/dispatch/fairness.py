"""How two equal tenants share an engine: the answer tokens of each chunk as they were given, and the share of one of
them over any 20 chunks in a row while both had work.

Each mix is two jobs of different shapes handed over at once, run for real: claims from PostgreSQL in the order in which
one worker takes them. The chart shows the first tenant's share as it runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from benchmarks.report import Report
from core.chunks import Cutter
from core.job import JobKind, JobState, ServiceClass
from core.settings import Settings
from db import chunks, models
from db.chunks import Outcome
from db.connection import Database
from db.intake import add_chunks
from db.tables import JobRow

MODEL = "null"
TENANTS = ("left", "right")
WINDOW_CHUNKS = 20


@dataclass(frozen=True, slots=True)
class Shape:
    """num_rows requests that ask for max_tokens each and take answer_tokens."""

    num_rows: int
    max_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    tenant: str
    answer_tokens: int


MIXES: dict[str, tuple[Shape, Shape]] = {
    "alike": (Shape(20_000, 128, 100), Shape(20_000, 128, 100)),
    "few_long_rows_beside_many_short": (Shape(3_000, 1_024, 1_000), Shape(200_000, 16, 16)),
    "a_late_guest_beside_a_million_rows": (Shape(1_000_000, 128, 128), Shape(20_000, 128, 128)),
    "answers_shorter_than_asked_for": (Shape(20_000, 512, 40), Shape(20_000, 64, 60)),
}


def measure_fairness(database: Database, settings: Settings, report: Report) -> None:
    with database.begin() as session:
        models.place(session, node="node", devices=["cpu"], sources={MODEL: "null:"})
    for name, shapes in MIXES.items():
        _clear(database)
        for tenant, shape in zip(TENANTS, shapes, strict=True):
            hand_over(database, settings, tenant, shape)
        turns = run_all(database, dict(zip(TENANTS, shapes, strict=True)))
        shares = window_shares(turns)
        report.add(f"fairness_{name}_least", min(shares), "of the tokens")
        report.add(f"fairness_{name}_most", max(shares), "of the tokens")
        report.chart(f"share of `{TENANTS[0]}` over {WINDOW_CHUNKS} chunks, {name}", shares)


def _clear(database: Database) -> None:
    with database.begin() as session:
        session.execute(text("TRUNCATE jobs, chunks, outcomes, requests, tenant_shares CASCADE"))


def hand_over(database: Database, settings: Settings, tenant: str, shape: Shape) -> None:
    """A job of one tenant, cut as the intake cuts it; the rows themselves do not matter here."""
    cutter = Cutter(settings.chunk_rows, settings.chunk_tokens)
    for _ in range(shape.num_rows):
        cutter.add(shape.max_tokens)
    job = JobRow(
        public_id=f"batch_{tenant}",
        tenant=tenant,
        kind=JobKind.INFERENCE.value,
        service_class=ServiceClass.BATCH.value,
        state=JobState.IN_PROGRESS.value,
        endpoint="/v1/chat/completions",
        model=MODEL,
        num_requests=shape.num_rows,
    )
    with database.begin() as session:
        session.add(job)
        session.flush()
        session.refresh(job)
        add_chunks(session, job, MODEL, cutter.finish())


def run_all(database: Database, shapes: dict[str, Shape]) -> list[Turn]:
    """In the order of the claims, until the first tenant has nothing left: from then on there is nothing to share."""
    turns: list[Turn] = []
    while (lease := _claim(database)) is not None:
        shape = shapes[lease.tenant]
        rows = range(lease.first_request, lease.first_request + lease.num_requests)
        outcomes = [Outcome(index, 200, "{}", completion_tokens=shape.answer_tokens) for index in rows]
        with database.begin() as session:
            chunks.write(session, lease, outcomes)
        turns.append(Turn(lease.tenant, lease.num_requests * shape.answer_tokens))
        if not _both_wait(database):
            break
    return turns


def _claim(database: Database) -> chunks.Lease | None:
    with database.begin() as session:
        return chunks.claim(
            session, owner="benchmark", service_class=ServiceClass.BATCH.value, models=[MODEL], lease_seconds=60.0
        )


def _both_wait(database: Database) -> bool:
    query = text("SELECT count(DISTINCT tenant) FROM chunks WHERE state = 'waiting'")
    with database.begin() as session:
        return bool(session.execute(query).scalar_one() == len(TENANTS))


def window_shares(turns: Sequence[Turn]) -> list[float]:
    """The first tenant's part of the answer tokens of every `WINDOW_CHUNKS` chunks in a row."""
    shares = []
    for first in range(max(1, len(turns) - WINDOW_CHUNKS + 1)):
        window = turns[first : first + WINDOW_CHUNKS]
        own = sum(turn.answer_tokens for turn in window if turn.tenant == TENANTS[0])
        shares.append(own / sum(turn.answer_tokens for turn in window))
    return shares
