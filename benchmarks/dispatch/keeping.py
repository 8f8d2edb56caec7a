"""What it costs to keep leases: the keeper of a worker that runs 64 chunks, for every length of a lease.

In fast motion: the keeper's clock is ours and goes on by one look at a time, so that an hour takes a minute. Both sides
rest between two looks, as they do in life; what a wake-up after half a second costs more than one after a millisecond
is not in these figures.
"""

import time
from dataclasses import dataclass

from sqlalchemy import event, text

from benchmarks.dispatch.fairness import MODEL, Shape, hand_over
from benchmarks.processes import tree_cpu_seconds
from core.job import ServiceClass
from core.settings import Settings
from db import chunks
from db.connection import Database
from workers.chunks.keeper import LOOK_SECONDS, LeaseKeeper
from workers.instance import find_processes

NUM_CHUNKS = 64
OWNER = "keeper"
REST_SECONDS = 0.001
HOUR_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a keeper and its database do in an hour."""

    renewals: float
    postgresql_cpu_seconds: float
    keeper_cpu_seconds: float


class Clock:
    """Says what it was set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fill(database: Database, settings: Settings) -> None:
    """Chunks of one row, to be claimed by `measure_keeping`."""
    hand_over(database, settings, OWNER, Shape(NUM_CHUNKS, settings.chunk_tokens, 1))


def measure_keeping(database: Database, identity: str, lease_seconds: float, num_looks: int) -> Keeping:
    """identity: of the instance that runs PostgreSQL. Whatever an earlier one held is claimed anew."""
    clock = Clock()
    keeper = LeaseKeeper(database, OWNER, lease_seconds, clock)
    watches = [keeper.hold(lease) for lease in _claim_all(database, lease_seconds)]
    num_renewals = 0

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal num_renewals
        num_renewals += "UPDATE chunks" in statement

    event.listen(database.engine, "before_cursor_execute", count)
    postmaster = _postmaster(identity)
    server_before, own_before = tree_cpu_seconds(postmaster), time.thread_time()
    for _ in range(num_looks):
        clock.now += LOOK_SECONDS
        for watch in watches:
            watch.touch()
        keeper.look()
        time.sleep(REST_SECONDS)
    server_seconds, own_seconds = tree_cpu_seconds(postmaster) - server_before, time.thread_time() - own_before
    event.remove(database.engine, "before_cursor_execute", count)
    if any(watch.is_lost for watch in watches):
        raise RuntimeError("expected every lease to be kept, got one that was lost")
    per_hour = HOUR_SECONDS / (num_looks * LOOK_SECONDS)
    return Keeping(num_renewals * per_hour, server_seconds * per_hour, own_seconds * per_hour)


def _claim_all(database: Database, lease_seconds: float) -> list[chunks.Lease]:
    """All of them wait again first."""
    leases = []
    with database.begin() as session:
        session.execute(
            text("UPDATE chunks SET state = 'waiting', owner = NULL WHERE owner = :owner"), {"owner": OWNER}
        )
    for _ in range(NUM_CHUNKS):
        with database.begin() as session:
            lease = chunks.claim(
                session,
                owner=OWNER,
                service_class=ServiceClass.BATCH.value,
                models=[MODEL],
                lease_seconds=lease_seconds,
            )
        assert lease is not None
        leases.append(lease)
    return leases


def _postmaster(identity: str) -> int:
    """The oldest process of the server."""
    found = [process for process in find_processes(identity) if process.name() == "postgres"]
    return min(found, key=lambda process: process.create_time()).pid
