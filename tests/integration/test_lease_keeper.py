"""The keeper of a worker's leases over the real database: renewals, and what the threads that run chunks are told."""

from collections.abc import Callable

from sqlalchemy import text

from core.job import JobState
from db import chunks, jobs, pauses
from db.chunks import Lease
from tests.world import World
from workers.chunks.keeper import STUCK_SECONDS, LeaseKeeper

OWNER = "worker-a"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def held(world: World, clock: Callable[[], float], lease_seconds: float = 15.0) -> tuple[LeaseKeeper, Lease]:
    world.start_job(10)
    lease = world.claim(OWNER, lease_seconds)
    assert lease is not None
    return LeaseKeeper(world.database, OWNER, lease_seconds, clock), lease


def seconds_left(world: World) -> float:
    with world.database.begin() as session:
        return float(session.execute(text("SELECT extract(epoch FROM lease_until - now()) FROM chunks")).scalar_one())


def shorten(world: World) -> None:
    with world.database.begin() as session:
        session.execute(text("UPDATE chunks SET lease_until = now() + interval '1 second'"))


def test_leases_are_renewed_after_a_third_of_their_length_and_not_before(world: World) -> None:
    # Given
    clock = Clock()
    keeper, lease = held(world, clock)
    keeper.hold(lease)
    shorten(world)
    # When / Then
    clock.now = 4.9
    keeper.look()
    assert seconds_left(world) < 2
    # When / Then
    clock.now = 5.0
    keeper.look()
    assert seconds_left(world) > 10


def test_a_lease_that_somebody_else_took_is_known_to_be_lost(world: World) -> None:
    # Given
    keeper, lease = held(world, Clock())
    watch = keeper.hold(lease)
    shorten(world)
    with world.database.begin() as session:
        session.execute(text("UPDATE chunks SET lease_until = now() - interval '1 second'"))
        chunks.expire(session)
    assert world.claim("worker-b") is not None
    # When
    keeper.look()
    # Then
    assert watch.is_lost


def test_a_stopped_job_and_a_pause_are_heard_without_a_write(world: World) -> None:
    # Given
    keeper, lease = held(world, Clock())
    watch = keeper.hold(lease)
    keeper.look()
    assert (watch.is_stopping, watch.is_paused, watch.is_lost) == (False, False, False)
    # When
    with world.database.begin() as session:
        pauses.pause(session, service_class="batch")
    keeper.look()
    # Then
    assert watch.is_paused
    # When
    with world.database.begin() as session:
        pauses.resume(session)
        jobs.stop(session, world.job(lease.job_public_id), JobState.CANCELLED)
    keeper.look()
    # Then
    assert (watch.is_paused, watch.is_stopping) == (False, True)


def test_the_lease_of_a_thread_that_is_stuck_is_left_to_expire(world: World) -> None:
    # Given
    clock = Clock()
    keeper, lease = held(world, clock)
    watch = keeper.hold(lease)
    shorten(world)
    # When
    clock.now = STUCK_SECONDS + 1
    keeper.look()
    # Then
    assert seconds_left(world) < 2
    # When it moves again
    watch.touch()
    keeper.look()
    # Then
    assert seconds_left(world) > 10


def test_a_released_lease_is_nobodys_business(world: World) -> None:
    # Given
    clock = Clock()
    keeper, lease = held(world, clock)
    watch = keeper.hold(lease)
    shorten(world)
    # When
    keeper.release(watch)
    clock.now = 100.0
    keeper.look()
    # Then
    assert seconds_left(world) < 2
    assert not watch.is_lost
