"""Claiming, fenced writes, expiry: a chunk's requests get exactly one outcome each, whoever else tries."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from core.errors import LeaseLost
from core.job import JobState
from db import chunks, jobs
from tasks.upkeep import reconciler
from tests.world import MODEL, World, failure, success


def expire_leases(world: World) -> None:
    with world.database.begin() as session:
        session.execute(text("UPDATE chunks SET lease_until = now() - interval '1 second' WHERE state = 'running'"))


def chunk_states(world: World) -> list[str]:
    with world.database.begin() as session:
        return list(session.execute(text("SELECT state FROM chunks ORDER BY index")).scalars())


def test_a_job_is_cut_into_chunks_and_the_last_one_holds_the_rest(world: World) -> None:
    # Given / When
    job = world.start_job(25)
    # Then
    with world.database.begin() as session:
        rows = session.execute(text("SELECT first_request, num_requests FROM chunks ORDER BY index")).all()
    assert [tuple(row) for row in rows] == [(0, 10), (10, 10), (20, 5)]
    assert job.state == JobState.IN_PROGRESS
    assert job.num_requests == 25


def test_every_chunk_is_claimed_by_one_worker_only(world: World) -> None:
    # Given
    world.start_job(200)
    # When
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda number: world.claim(f"worker-{number}"), range(30)))
    # Then
    claimed = [lease.chunk_id for lease in leases if lease is not None]
    assert len(claimed) == len(set(claimed)) == 20


def test_the_highest_priority_is_claimed_first_then_the_oldest(world: World) -> None:
    # Given
    old, urgent = world.start_job(10), world.start_job(10)
    with world.database.begin() as session:
        jobs.set_priority(session, urgent, 9)
    # When
    order = [lease.job_id for lease in (world.claim(), world.claim()) if lease]
    # Then
    assert order == [urgent.id, old.id]


def test_a_chunk_of_another_model_is_not_claimed(world: World) -> None:
    # Given
    world.start_job(10)
    # When
    with world.database.begin() as session:
        lease = chunks.claim(session, owner="w", service_class="batch", models=["other"], lease_seconds=60)
    # Then
    assert lease is None


def test_a_written_outcome_is_not_run_again_and_the_last_one_ends_the_chunk(world: World) -> None:
    # Given
    world.start_job(10)
    lease = world.claim()
    assert lease is not None
    # When
    first = world.write(lease, [success(0), failure(3)])
    # Then
    assert not first.is_done
    assert world.unfinished(lease) == [1, 2, 4, 5, 6, 7, 8, 9]
    # When
    last = world.write(lease, [success(index) for index in (1, 2, 4, 5, 6, 7, 8, 9)])
    # Then
    assert last.is_done
    assert chunk_states(world) == ["done"]
    with world.database.begin() as session:
        counted = jobs.progress(session, [lease.job_id])[lease.job_id]
    assert (counted.num_completed, counted.num_failed, counted.completion_tokens) == (9, 1, 18)


def test_a_worker_that_lost_its_lease_can_write_nothing(world: World) -> None:
    # Given
    world.start_job(10)
    paused = world.claim("paused")
    assert paused is not None
    expire_leases(world)
    assert reconciler.take_back(world.services) == 1
    heir = world.claim("heir")
    assert heir is not None
    # When
    with pytest.raises(LeaseLost, match="no longer leased to paused"):
        world.write(paused, [success(0, "from the dead")])
    with pytest.raises(LeaseLost), world.database.begin() as session:
        chunks.hand_back(session, paused)
    # Then
    assert heir.attempt == paused.attempt + 1
    assert world.unfinished(heir) == list(range(10))


def test_the_same_owner_on_an_older_attempt_is_fenced_too(world: World) -> None:
    # Given
    world.start_job(10)
    first = world.claim("same")
    expire_leases(world)
    reconciler.take_back(world.services)
    second = world.claim("same")
    assert first is not None
    assert second is not None
    # When / Then
    with pytest.raises(LeaseLost):
        world.write(first, [success(0)])
    assert not world.write(second, [success(0)]).is_done


def test_an_outcome_that_is_already_there_stays_and_is_counted_once(world: World) -> None:
    # Given an outcome that an earlier attempt had committed
    world.start_job(10)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0, "the first")])
    # When
    world.write(lease, [success(0, "the second"), success(1)])
    # Then
    with world.database.begin() as session:
        body = session.execute(text("SELECT body FROM outcomes WHERE index = 0")).scalar_one()
        counted = jobs.progress(session, [lease.job_id])[lease.job_id]
    assert "the first" in body
    assert counted.num_completed == 2


def test_writing_renews_the_lease(world: World) -> None:
    # Given a lease about to run out
    world.start_job(10)
    lease = world.claim()
    assert lease is not None
    with world.database.begin() as session:
        session.execute(text("UPDATE chunks SET lease_until = now()"))
    # When
    world.write(lease)
    # Then
    assert reconciler.take_back(world.services) == 0


def test_two_reconcilers_at_once_take_a_chunk_back_once(world: World) -> None:
    # Given
    world.start_job(100)
    while world.claim() is not None:
        pass
    expire_leases(world)
    barrier = threading.Barrier(2)

    def take_back() -> int:
        barrier.wait()
        return reconciler.take_back(world.services)

    # When
    with ThreadPoolExecutor(2) as pool:
        taken = [future.result() for future in [pool.submit(take_back), pool.submit(take_back)]]
    # Then
    assert sum(taken) == 10
    assert chunk_states(world) == ["waiting"] * 10


def test_a_chunk_handed_back_keeps_its_outcomes_and_says_why(world: World) -> None:
    # Given
    world.start_job(10)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(4)])
    # When
    with world.database.begin() as session:
        chunks.hand_back(session, lease, chunks.Crash(None, width=1))
    # Then
    heir = world.claim("heir")
    assert heir is not None
    assert heir.num_crashes == 1
    assert 4 not in world.unfinished(heir)


def test_a_cancelled_job_stops_its_waiting_chunks_now_and_tells_its_running_ones(world: World) -> None:
    # Given
    job = world.start_job(20)
    lease = world.claim()
    assert lease is not None
    # When
    with world.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
    # Then
    assert chunk_states(world) == ["running", "cancelled"]
    assert world.write(lease, [success(0)]).is_stopping
    # When
    with world.database.begin() as session:
        chunks.hand_back(session, lease)
    # Then
    assert chunk_states(world) == ["cancelled", "cancelled"]


def test_an_expired_lease_of_a_cancelled_job_does_not_run_again(world: World) -> None:
    # Given
    job = world.start_job(10)
    world.claim()
    with world.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
    expire_leases(world)
    # When
    reconciler.take_back(world.services)
    # Then
    assert chunk_states(world) == ["cancelled"]
    assert world.claim() is None


def test_a_backlog_names_the_best_chunks_up_to_the_window(world: World) -> None:
    # Given
    job = world.start_job(50)
    # When
    with world.database.begin() as session:
        (backlog,) = chunks.backlog(session, window=3)
    # Then
    assert (backlog.service_class, backlog.model) == ("batch", MODEL)
    assert backlog.names == [f"{job.public_id}#{index}" for index in range(3)]
