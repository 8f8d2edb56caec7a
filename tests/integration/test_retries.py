"""Requests that are tried again: kept in PostgreSQL with their last error, and waited for without holding a worker."""

from sqlalchemy import text

from core.job import JobState
from db import chunks, jobs
from db.chunks import Lease, Retry
from tasks.upkeep import reconciler
from tests.world import World, success


def claimed(world: World, num_requests: int = 3) -> Lease:
    world.start_job(num_requests)
    lease = world.claim()
    assert lease is not None
    return lease


def note(world: World, lease: Lease, index: int, *, num_attempts: int = 1, delay_seconds: float = 3600.0) -> None:
    retry = Retry(index, num_attempts, "model_failure", "NaN", delay_seconds)
    with world.database.begin() as session:
        chunks.write(session, lease, [], [retry])


def delay(world: World, lease: Lease) -> None:
    with world.database.begin() as session:
        chunks.delay(session, lease)


def make_due(world: World) -> None:
    with world.database.begin() as session:
        session.execute(text("UPDATE retries SET retry_at = now() - interval '1 second'"))
        session.execute(
            text("UPDATE chunks SET available_at = now() - interval '1 second' WHERE available_at IS NOT NULL")
        )


def chunk_state(world: World) -> str:
    with world.database.begin() as session:
        return str(session.execute(text("SELECT state FROM chunks")).scalar_one())


def test_a_request_that_must_wait_is_left_out_until_it_is_due_and_tells_its_attempts(world: World) -> None:
    # Given
    lease = claimed(world)
    note(world, lease, 1, num_attempts=2)
    # When / Then
    assert world.unfinished(lease) == [0, 2]
    # When
    make_due(world)
    with world.database.begin() as session:
        found = {request.index: request.num_attempts for request in chunks.unfinished(session, lease)}
    # Then
    assert found == {0: 0, 1: 2, 2: 0}


def test_the_last_error_and_the_number_of_tries_stay_readable(world: World) -> None:
    # Given
    lease = claimed(world)
    note(world, lease, 1, num_attempts=1)
    note(world, lease, 1, num_attempts=2)
    # When
    world.write(lease, [success(index) for index in range(3)])
    # Then
    with world.database.begin() as session:
        row = session.execute(text("SELECT index, num_attempts, code, message FROM retries")).one()
    assert tuple(row) == (1, 2, "model_failure", "NaN")


def test_a_chunk_of_requests_that_wait_is_delayed_and_comes_back_when_the_first_is_due(world: World) -> None:
    # Given
    lease = claimed(world)
    world.write(lease, [success(0), success(2)])
    note(world, lease, 1)
    # When
    delay(world, lease)
    reconciler.reconcile()
    # Then nobody can claim it, and its job does not end
    assert chunk_state(world) == "waiting"
    assert world.claim() is None
    with world.database.begin() as session:
        assert jobs.progress(session, [lease.job_id])[lease.job_id].num_busy_chunks == 1
    # When
    make_due(world)
    reconciler.reconcile()
    again = world.claim()
    # Then
    assert again is not None
    assert again.attempt == 2
    assert world.unfinished(again) == [1]


def test_a_delayed_chunk_of_a_job_that_is_stopped_is_cancelled(world: World) -> None:
    # Given
    lease = claimed(world)
    note(world, lease, 1)
    delay(world, lease)
    job = world.job(lease.job_public_id)
    # When
    with world.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
    # Then
    assert chunk_state(world) == "cancelled"


def test_a_lease_in_the_far_future_is_cut_and_then_runs_out(world: World) -> None:
    # Given a lease that was written under a clock an hour ahead
    lease = claimed(world)
    with world.database.begin() as session:
        session.execute(text("UPDATE chunks SET lease_until = now() + interval '1 hour'"))
    # When
    reconciler.reconcile()
    # Then
    with world.database.begin() as session:
        left = session.execute(text("SELECT extract(epoch FROM lease_until - now()) FROM chunks")).scalar_one()
    assert 0 < left <= world.services.settings.lease_seconds
    assert world.write(lease, [success(0)]).is_done is False  # it is still its owner's
