"""How long a lease should be: what it costs to keep, how soon the chunks of a dead worker run again, and how often one
is lost though its worker lives, which is what short ones cost.

All lengths are measured at the same moments: a node for each beside the same database, broker and reconciler.
"""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import text

from benchmarks.dispatch import keeping
from benchmarks.dispatch.keeping import Keeping, measure_keeping
from benchmarks.dispatch.nodes import Nodes, node_name, running_nodes
from benchmarks.report import Report
from core.errors import Unavailable
from db.connection import Database
from workers.instance import Instance

RECOVERY_SLACK_SECONDS = 30.0
NUM_SPINNING = 4

_STANDING = text("""
SELECT model, sum(attempt)::int, count(*) FILTER (WHERE state = 'running')::int, count(*)::int
FROM chunks WHERE model LIKE 'lease-%' GROUP BY model
""")


@dataclass(frozen=True, slots=True)
class Plan:
    """pauses: seconds for which a worker is stopped. num_looks: of the keeper in fast motion, two to a second."""

    lease_lengths: tuple[int, ...]
    num_looks: int
    num_kills: int
    num_rounds: int
    pauses: tuple[int, ...]
    spin_seconds: float


FULL = Plan((5, 10, 15, 30, 60), 2_400, 3, 3, (1, 3, 5, 10), 12.0)
QUICK = Plan((3, 6), 120, 1, 1, (1, 5), 4.0)


@dataclass(frozen=True, slots=True)
class Standing:
    """The chunks of a node. attempts: how often they were begun, in all."""

    attempts: int
    num_running: int
    num_chunks: int


def measure_leases(root: Path, report: Report, plan: Plan) -> None:
    with running_nodes(root, plan.lease_lengths) as nodes:
        assert nodes.settings.database_url is not None
        database = Database(nodes.settings.database_url)
        try:
            _report_keeping(nodes, database, report, plan)
            nodes.start_nodes(database)
            watch = Watch(nodes, database, plan.lease_lengths)
            watch.await_settled()
            recoveries = [watch.kill_all() for _ in range(plan.num_kills)]
            losses = {name: watch.disturb(disturb, plan) for name, disturb in disturbances(plan).items()}
        finally:
            database.close()
    _report_recoveries(report, recoveries)
    report.table("lease_lost", "of leases, the worker alive", by_lease(losses))


def _report_keeping(nodes: Nodes, database: Database, report: Report, plan: Plan) -> None:
    keeping.fill(database, nodes.settings)
    identity = Instance.of(nodes.settings).identity
    found = {length: measure_keeping(database, identity, length, plan.num_looks) for length in plan.lease_lengths}
    with database.begin() as session:
        session.execute(text("TRUNCATE jobs, chunks, tenant_shares CASCADE"))
    report.table(
        "lease_keeping",
        "renewals, CPU s an hour",
        {f"{length}_s": _keeping_cells(cost) for length, cost in found.items()},
    )


def _keeping_cells(cost: Keeping) -> dict[str, float]:
    return {
        "renewals": cost.renewals,
        "postgresql": cost.postgresql_cpu_seconds,
        "keeper": cost.keeper_cpu_seconds,
    }


def _report_recoveries(report: Report, recoveries: Sequence[dict[int, float]]) -> None:
    rows = {}
    for length in recoveries[0]:
        seconds = [found[length] for found in recoveries]
        median = statistics.median(seconds)
        rows[f"{length}_s"] = {"median": median, "worst": max(seconds), "over": median - length}
    report.table("lease_runs_again", "s after SIGKILL", rows)


def by_lease(losses: dict[str, dict[int, float]]) -> dict[str, dict[str, float]]:
    """disturbance -> lease length -> fraction, as rows of lengths."""
    lengths = next(iter(losses.values()), {})
    return {f"{length}_s": {name: found[length] for name, found in losses.items()} for length in lengths}


class Watch:
    """Strikes all nodes at once, and sees what became of their chunks."""

    def __init__(self, nodes: Nodes, database: Database, lease_lengths: Sequence[int]) -> None:
        self._nodes = nodes
        self._database = database
        self._lengths = {node_name(length): length for length in lease_lengths}

    def await_settled(self) -> None:
        """Every chunk runs, and the reconciler has been there since. Raises RuntimeError where that does not come."""
        settings = self._nodes.settings
        if not self._nodes.wait(self._all_run, settings.lease_seconds + RECOVERY_SLACK_SECONDS):
            raise RuntimeError(f"expected every chunk to run, got {self._standings()}")
        self.stay(settings.reconcile_seconds + 1.0)

    def stay(self, seconds: float) -> None:
        self._nodes.wait(lambda: False, seconds)

    def workers(self) -> list[psutil.Process]:
        found = [self._nodes.worker(name) for name in self._lengths]
        return [worker for worker in found if worker is not None]

    def kill_all(self) -> dict[int, float]:
        """Lease length -> seconds from the SIGKILL of its worker until all its chunks have been begun again."""
        before = self._standings()
        for worker in self.workers():
            worker.kill()
        killed_at = time.monotonic()
        seen: dict[int, float] = {}

        def are_back() -> bool:
            standings = self._standings()
            for name, length in self._lengths.items():
                due = before[name].attempts + before[name].num_chunks
                if length not in seen and standings[name].attempts >= due:
                    seen[length] = time.monotonic() - killed_at
            return len(seen) == len(self._lengths)

        if not self._nodes.wait(are_back, max(self._lengths.values()) + RECOVERY_SLACK_SECONDS):
            raise RuntimeError(f"expected the chunks of dead workers to run again, got {self._standings()}")
        self.await_settled()
        return dict(sorted(seen.items()))

    def disturb(self, disturb: "Disturbance", plan: Plan) -> dict[int, float]:
        """Lease length -> part of the leases that were lost. Raises RuntimeError where a worker dies of it."""
        workers = self.workers()
        before = self._standings()
        for _ in range(plan.num_rounds):
            disturb(self)
            self.await_settled()
        if {worker.pid for worker in workers} != {worker.pid for worker in self.workers()}:
            raise RuntimeError("expected workers to live through a disturbance, got one that died")
        after = self._standings()
        return {
            length: (after[name].attempts - before[name].attempts) / (plan.num_rounds * before[name].num_chunks)
            for name, length in self._lengths.items()
        }

    def pause_workers(self, seconds: float) -> None:
        workers = self.workers()
        for worker in workers:
            worker.suspend()
        self.stay(seconds)
        for worker in workers:
            worker.resume()

    def restart_postgresql(self) -> None:
        """As its part is stopped; its supervisor starts it again."""
        server = self._nodes.postgresql()
        assert server is not None
        server.send_signal(signal.SIGINT)  # fast: SIGTERM would wait for every client to leave
        self._nodes.wait(lambda: not server.is_running())

    def _all_run(self) -> bool:
        try:
            standings = self._standings()
        except Unavailable:
            return False
        return all(standings[name].num_running == standings[name].num_chunks for name in self._lengths)

    def _standings(self) -> dict[str, Standing]:
        with self._database.begin() as session:
            return {row[0]: Standing(row[1], row[2], row[3]) for row in session.execute(_STANDING)}


Disturbance = Callable[[Watch], None]


def disturbances(plan: Plan) -> dict[str, Disturbance]:
    pauses = {f"paused_{seconds}_s": _paused(seconds) for seconds in plan.pauses}
    return {**pauses, "db_restart": Watch.restart_postgresql, "busy": lambda watch: _busy(watch, plan.spin_seconds)}


def _paused(seconds: int) -> Disturbance:
    return lambda watch: watch.pause_workers(seconds)


def _busy(watch: Watch, seconds: float) -> None:
    with spinning(NUM_SPINNING):
        watch.stay(seconds)


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """So many processes that compute and never wait."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=spin, args=(os.getpid(),), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def spin(parent: int) -> None:
    """Until it is killed, or its parent is gone."""
    while os.getppid() == parent:
        for _ in range(100_000):
            pass
