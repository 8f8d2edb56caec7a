"""Submit, claim, renew, expire, write, retry, hand back, cancel, pause and reconcile in any order, with workers that do
not notice that they lost their lease: whatever happens, every request gets exactly one outcome, the one that a worker
wrote while the chunk was its own, the counters are those of the outcomes, and every job ends."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from core.errors import LeaseLost
from core.job import (
    CHUNK_MOVES,
    JOB_MOVES,
    REQUEST_MOVES,
    TERMINAL_JOB_STATES,
    ChunkState,
    JobState,
    RequestState,
)
from db import chunks, jobs, pauses
from db.chunks import Crash, Lease, Outcome, Retry
from db.files import PostgresFiles
from db.tables import JobRow
from tasks.services import Services
from tasks.upkeep import reconciler
from tasks.upkeep.finalizing import finalize
from tasks.upkeep.intake import validate
from tests.world import World, batch_file

Key = TypeVar("Key")
State = TypeVar("State", JobState, ChunkState, RequestState)

MAX_ROWS = 23
PICKS = st.lists(st.integers(0, 9), max_size=10, unique=True)
TENANTS = ("one", "two")
TABLES = ("chunks", "jobs", "requests", "outcomes", "retries", "tenant_shares", "pauses", "files", "file_blocks")


@dataclass
class Model:
    """What must be so, kept beside the database."""

    num_rows: dict[str, int] = field(default_factory=dict)
    written: dict[tuple[str, int], str] = field(default_factory=dict)
    job_states: dict[str, JobState] = field(default_factory=dict)
    chunk_states: dict[int, ChunkState] = field(default_factory=dict)
    request_states: dict[tuple[int, int], RequestState] = field(default_factory=dict)


class ChunkMachine(RuleBasedStateMachine):
    """`world` is set by the test: the database is emptied for every example, which is cheaper than a new one."""

    world: World
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.num_answers = 0
        self.on_commit: Callable[[], None] = do_nothing
        with self.world.database.begin() as session:
            for table in TABLES:
                session.execute(text(f"DELETE FROM {table}"))
        self.world.services.redis.flushdb()

    @rule(num_rows=st.integers(1, MAX_ROWS), tenant=st.sampled_from(TENANTS), priority=st.integers(0, 9))
    def submit(self, num_rows: int, tenant: str, priority: int) -> None:
        job = self.world.start_job(num_rows, tenant=tenant, priority=priority)
        self.model.num_rows[job.public_id] = num_rows

    @rule(num_rows=st.integers(1, MAX_ROWS), tenant=st.sampled_from(TENANTS))
    def cancel_while_validating(self, num_rows: int, tenant: str) -> None:
        """Nothing of it is left to run."""
        job = self.world.submit(batch_file(range(num_rows)), tenant=tenant)
        self.model.num_rows[job.public_id] = 0
        stop = partial(self.with_job, -1, lambda session, row: jobs.stop(session, row, JobState.CANCELLED))
        assert not validate(self.meanwhile(stop), job.public_id)

    @rule(num_rows=st.integers(1, MAX_ROWS), priority=st.integers(0, 9))
    def change_priority_while_validating(self, num_rows: int, priority: int) -> None:
        job = self.world.submit(batch_file(range(num_rows)))
        self.model.num_rows[job.public_id] = num_rows
        change = partial(self.with_job, -1, lambda session, row: jobs.set_priority(session, row, priority))
        assert validate(self.meanwhile(change), job.public_id)

    @rule(target=leases, owner=st.sampled_from(("a", "a", "b")), takes_oldest=st.booleans())
    def claim(self, owner: str, takes_oldest: bool) -> Lease | MultipleResults[Lease]:
        lease = self.world.claim(owner, takes_oldest=takes_oldest)
        return multiple() if lease is None else lease

    @rule(lease=leases, picks=PICKS, is_success=st.booleans())
    def write(self, lease: Lease, picks: list[int], is_success: bool) -> None:
        """Of any requests of the chunk, also those that have an outcome: as a worker would that ran them twice."""
        indices = [lease.first_request + pick for pick in picks if pick < lease.num_requests]
        self.num_answers += 1
        answer = json.dumps({"answer": self.num_answers})
        outcomes = [Outcome(index, 200 if is_success else 400, answer, 3, 2) for index in indices]
        with self.unless_lost(lease), self.world.database.begin() as session:
            chunks.write(session, lease, outcomes)
            written = [index for index in indices if (lease.job_public_id, index) not in self.model.written]
            self.on_commit = lambda: self.model.written.update(
                {(lease.job_public_id, index): answer for index in written}
            )

    @rule(lease=consumes(leases))
    def finish(self, lease: Lease) -> None:
        self.write(lease, list(range(10)), True)

    @rule(owner=st.sampled_from(("a", "b")), num_chunks=st.integers(1, 3))
    def work(self, owner: str, num_chunks: int) -> None:
        for _ in range(num_chunks):
            lease = self.world.claim(owner)
            if lease is not None:
                self.write(lease, list(range(10)), True)

    @rule(lease=leases, pick=st.integers(0, 9), num_attempts=st.integers(1, 3))
    def try_later(self, lease: Lease, pick: int, num_attempts: int) -> None:
        if pick >= lease.num_requests:
            return
        retry = Retry(lease.first_request + pick, num_attempts, "model_failure", "why", delay_seconds=0.0)
        with self.unless_lost(lease), self.world.database.begin() as session:
            chunks.write(session, lease, [], [retry])

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        with self.world.database.begin() as session:
            chunks.renew(session, lease.owner, [chunks.Held(lease.chunk_id, lease.attempt)], 60.0)

    @rule(lease=consumes(leases), crash=st.sampled_from((None, Crash(None, width=3), Crash(0, width=1))))
    def hand_back(self, lease: Lease, crash: Crash | None) -> None:
        with self.unless_lost(lease), self.world.database.begin() as session:
            chunks.hand_back(session, lease, crash)

    @rule(lease=consumes(leases))
    def delay(self, lease: Lease) -> None:
        with self.unless_lost(lease), self.world.database.begin() as session:
            chunks.delay(session, lease)

    @rule(seconds=st.sampled_from((-1, 86_400)))
    def step_clock(self, seconds: int) -> None:
        """Leases that have run out, or that another clock wrote; their workers know nothing of it."""
        with self.world.database.begin() as session:
            session.execute(
                text("UPDATE chunks SET lease_until = now() + make_interval(secs => :seconds) WHERE state = 'running'"),
                {"seconds": seconds},
            )

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: self.model.num_rows)
    def cancel(self, number: int) -> None:
        self.with_job(number, lambda session, job: jobs.stop(session, job, JobState.CANCELLED))

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: self.model.num_rows)
    def expire(self, number: int) -> None:
        self.with_job(number, lambda session, job: jobs.stop(session, job, JobState.EXPIRED))

    @rule(number=st.integers(0, 9), priority=st.integers(0, 9))
    @precondition(lambda self: self.model.num_rows)
    def change_priority(self, number: int, priority: int) -> None:
        def change(session: Session, job: JobRow) -> None:
            if JobState(job.state) not in TERMINAL_JOB_STATES:
                jobs.set_priority(session, job, priority)

        self.with_job(number, change)

    @rule(is_paused=st.booleans())
    def hold(self, is_paused: bool) -> None:
        with self.world.database.begin() as session:
            (pauses.pause if is_paused else pauses.resume)(session, service_class="batch")

    @rule(target=leases, lease=leases, picks=PICKS)
    def wake_up_late(self, lease: Lease, picks: list[int]) -> MultipleResults[Lease]:
        """A thread was paused beyond its lease, others of its worker claimed meanwhile, and it writes what it has."""
        self.step_clock(-1)
        reconciler.take_back(self.world.services)
        claimed = list(iter(lambda: self.world.claim(lease.owner), None))
        self.write(lease, picks, True)
        return multiple(*(again for again in claimed if again is not None))

    @rule()
    def reconcile(self) -> None:
        reconciler.reconcile()

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: self.model.num_rows)
    def end(self, number: int) -> None:
        finalize(self.world.services, self.nth_job(number))

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        with self.world.database.begin() as session:
            stored = session.execute(
                text(
                    "SELECT jobs.public_id, o.index, o.body FROM outcomes o JOIN jobs ON jobs.id = o.job_id"
                    " WHERE o.status_code IS NOT NULL"
                )
            ).all()
            rows = session.execute(
                text("SELECT jobs.public_id, count(*) FROM requests r JOIN jobs ON jobs.id = r.job_id GROUP BY 1")
            ).all()
        assert {(row[0], row[1]): row[2] for row in stored} == self.model.written
        assert {row[0]: row[1] for row in rows} == {name: count for name, count in self.model.num_rows.items() if count}

    @invariant()
    def counters_are_those_of_the_outcomes(self) -> None:
        with self.world.database.begin() as session:
            wrong = session.execute(
                text(
                    "SELECT c.id FROM chunks c JOIN jobs ON jobs.id = c.job_id CROSS JOIN LATERAL ("
                    "  SELECT count(*) FILTER (WHERE status_code = 200) AS completed,"
                    "    count(*) FILTER (WHERE status_code <> 200) AS failed FROM outcomes o"
                    "  WHERE o.job_id = c.job_id AND o.index >= c.first_request"
                    "    AND o.index < c.first_request + c.num_requests) AS seen"
                    " WHERE (c.num_completed, c.num_failed) IS DISTINCT FROM (seen.completed, seen.failed)"
                    "   OR (c.state = 'done') <> (seen.completed + seen.failed = c.num_requests)"
                    "   OR (c.state IN ('waiting', 'cancelled')) <> (c.owner IS NULL)"
                )
            ).all()
        assert wrong == []

    @invariant()
    def what_can_still_run_has_the_priority_of_its_job(self) -> None:
        with self.world.database.begin() as session:
            wrong = session.execute(
                text(
                    "SELECT c.id FROM chunks c JOIN jobs ON jobs.id = c.job_id"
                    " WHERE c.state IN ('waiting', 'running') AND c.priority <> jobs.priority"
                )
            ).all()
        assert wrong == []

    @invariant()
    def states_follow_the_tables(self) -> None:
        """Several moves may lie between two looks, so what follows is what can be reached."""
        with self.world.database.begin() as session:
            job_rows = session.execute(text("SELECT public_id, state FROM jobs")).all()
            chunk_rows = session.execute(text("SELECT id, state FROM chunks")).all()
            request_rows = session.execute(text(REQUEST_STATES)).all()
        check_moves(self.model.job_states, {row[0]: JobState(row[1]) for row in job_rows}, JOB_MOVES)
        check_moves(self.model.chunk_states, {row[0]: ChunkState(row[1]) for row in chunk_rows}, CHUNK_MOVES)
        now = {(row[0], row[1]): RequestState(row[2]) for row in request_rows}
        check_moves(self.model.request_states, now, REQUEST_MOVES)

    def teardown(self) -> None:
        """From wherever it stands, everything comes to its end: the leases run out, workers do what waits."""
        with self.world.database.begin() as session:
            pauses.resume(session)
        self.step_clock(-1)
        for _ in range(4 + sum(self.model.num_rows.values())):
            reconciler.reconcile()
            lease = self.world.claim("last")
            if lease is None:
                break
            self.write(lease, list(range(10)), True)
        for public_id in self.model.num_rows:
            finalize(self.world.services, public_id)
        self.check_ended()

    def check_ended(self) -> None:
        self.nothing_is_lost_or_doubled()
        with self.world.database.begin() as session:
            rows = session.execute(
                text(
                    "SELECT public_id, state, num_requests, num_completed + num_failed,"
                    " (SELECT count(*) FROM outcomes o WHERE o.job_id = jobs.id), output_file_id, error_file_id"
                    " FROM jobs"
                )
            ).all()
        for public_id, state, num_requests, num_counted, num_outcomes, output, errors in rows:
            assert JobState(state) in TERMINAL_JOB_STATES
            assert num_requests == num_counted == num_outcomes == self.model.num_rows[public_id]
            files = [self.world.read_lines(file_id) for file_id in (output, errors) if file_id is not None]
            names = Counter(str(line["custom_id"]) for lines in files for line in lines)
            assert names == Counter(f"row-{index}" for index in range(num_requests))

    def meanwhile(self, action: Callable[[], None]) -> Services:
        """While a file was read, before anything comes of it, `action` happens."""

        class Files(PostgresFiles):
            def read(self, file_id: str) -> Iterator[bytes]:
                yield from super().read(file_id)
                action()

        return replace(self.world.services, files=Files(self.world.database))

    def nth_job(self, number: int) -> str:
        names = list(self.model.num_rows)
        return names[number % len(names)]

    def with_job(self, number: int, action: Callable[[Session, JobRow], object]) -> None:
        with self.world.database.begin() as session:
            job = session.scalar(select(JobRow).where(JobRow.public_id == self.nth_job(number)))
            assert job is not None
            action(session, job)

    @contextmanager
    def unless_lost(self, lease: Lease) -> Iterator[None]:
        """A worker whose lease is no longer the last one is told so, and has written nothing; nobody else is."""
        self.on_commit = do_nothing
        with self.world.database.begin() as session:
            current = session.execute(
                text("SELECT owner, attempt FROM chunks WHERE id = :id AND state = 'running'"), {"id": lease.chunk_id}
            ).one_or_none()
        is_held = current is not None and tuple(current) == (lease.owner, lease.attempt)
        try:
            yield
        except LeaseLost:
            assert not is_held
            return
        assert is_held
        self.on_commit()


def do_nothing() -> None:
    """What a write that was refused changes."""


REQUEST_STATES = """
SELECT r.job_id, r.index, CASE
    WHEN o.index IS NOT NULL AND o.status_code IS NULL THEN 'unexecuted'
    WHEN o.status_code = 200 THEN 'succeeded'
    WHEN o.index IS NOT NULL THEN 'failed'
    WHEN retries.index IS NOT NULL THEN 'retrying'
    ELSE 'waiting' END
FROM requests r
LEFT JOIN outcomes o ON o.job_id = r.job_id AND o.index = r.index
LEFT JOIN retries ON retries.job_id = r.job_id AND retries.index = r.index
"""


def check_moves(before: dict[Key, State], now: dict[Key, State], moves: Mapping[State, frozenset[State]]) -> None:
    for key, state in now.items():
        earlier = before.get(key)
        assert earlier is None or earlier == state or state in reachable(moves, earlier), f"{key}: {earlier} -> {state}"
    before.clear()
    before.update(now)


def reachable(moves: Mapping[State, frozenset[State]], start: State) -> set[State]:
    found: set[State] = set()
    waiting = [start]
    while waiting:
        new = moves[waiting.pop()] - found
        found |= new
        waiting += new
    return found


@pytest.mark.timeout(240)
def test_whatever_happens_every_request_gets_exactly_one_outcome(world: World) -> None:
    machine = type("BoundMachine", (ChunkMachine,), {"world": world})
    bounds = settings(
        max_examples=15,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # to shrink a failure would take minutes
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=bounds)
