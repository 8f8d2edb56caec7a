"""How jobs end: the files that are written, once, whatever runs twice or dies in between."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import text

from core.job import JobState
from db import chunks, jobs
from tasks.upkeep import reconciler
from tasks.upkeep.finalizing import finalize
from tests.world import World, failure, success


def run_all(world: World, *, fail: frozenset[int] = frozenset()) -> None:
    while (lease := world.claim()) is not None:
        indices = world.unfinished(lease)
        world.write(lease, [failure(index) if index in fail else success(index) for index in indices])


def test_a_finished_job_has_its_answers_in_order_and_its_failures_apart(world: World) -> None:
    # Given
    job = world.start_job(25)
    run_all(world, fail=frozenset({3, 20}))
    # When
    finalize(world.services, job.public_id)
    # Then
    ended = world.job(job.public_id)
    assert ended.state == JobState.COMPLETED
    assert (ended.num_completed, ended.num_failed) == (23, 2)
    output, errors = world.read_lines(ended.output_file_id), world.read_lines(ended.error_file_id)
    assert [line["custom_id"] for line in output] == [f"row-{index}" for index in range(25) if index not in (3, 20)]
    assert [line["custom_id"] for line in errors] == ["row-3", "row-20"]
    assert output[0]["response"] == {
        "status_code": 200,
        "request_id": output[0]["id"],
        "body": {"answer": "an answer"},
    }
    assert errors[0]["response"]["status_code"] == 400  # type: ignore[index]


def test_a_job_without_failures_has_no_error_file(world: World) -> None:
    # Given
    job = world.start_job(3)
    run_all(world)
    # When
    finalize(world.services, job.public_id)
    # Then
    assert world.job(job.public_id).error_file_id is None


def test_a_job_with_a_busy_chunk_is_not_ended(world: World) -> None:
    # Given
    job = world.start_job(20)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(index) for index in range(10)])
    # When
    finalize(world.services, job.public_id)
    # Then
    assert world.job(job.public_id).state == JobState.IN_PROGRESS


def test_finalizing_twice_at_once_writes_one_file(world: World) -> None:
    # Given
    job = world.start_job(40)
    run_all(world)
    # When
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: finalize(world.services, job.public_id), range(4)))
    # Then
    ended = world.job(job.public_id)
    assert ended.state == JobState.COMPLETED
    assert len(world.read_lines(ended.output_file_id)) == 40
    with world.database.begin() as session:
        assert session.execute(text("SELECT count(*) FROM files WHERE purpose = 'batch_output'")).scalar() == 1


def test_a_finalizer_that_died_half_way_is_taken_up_again(world: World) -> None:
    # Given a job left `finalizing` with a file written and no row naming it
    job = world.start_job(5)
    run_all(world)
    with world.database.begin() as session:
        jobs.move(session, job.id, JobState.FINALIZING)
    # When
    finalize(world.services, job.public_id)
    # Then
    assert world.job(job.public_id).state == JobState.COMPLETED


def test_a_cancelled_job_keeps_its_answers_and_accounts_for_every_other_row(world: World) -> None:
    # Given
    job = world.start_job(30)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0), success(1)])
    with world.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
    with world.database.begin() as session:
        chunks.hand_back(session, lease)
    # When
    finalize(world.services, job.public_id)
    # Then
    ended = world.job(job.public_id)
    assert ended.state == JobState.CANCELLED
    assert ended.cancelled_at is not None
    assert len(world.read_lines(ended.output_file_id)) == 2
    errors = world.read_lines(ended.error_file_id)
    assert len(errors) == 28
    assert errors[0]["error"]["code"] == "batch_cancelled"  # type: ignore[index]
    assert errors[0]["response"] is None


def test_a_job_past_its_window_expires_and_returns_what_is_finished(world: World) -> None:
    # Given
    job = world.start_job(20, window=timedelta(seconds=-1))
    lease = world.claim()
    assert lease is not None
    # When
    reconciler.expire_overdue(world.services)
    # Then
    assert world.write(lease, [success(0)]).is_stopping
    # When
    with world.database.begin() as session:
        chunks.hand_back(session, lease)
    finalize(world.services, job.public_id)
    # Then
    ended = world.job(job.public_id)
    assert ended.state == JobState.EXPIRED
    assert len(world.read_lines(ended.output_file_id)) == 1
    assert {line["error"]["code"] for line in world.read_lines(ended.error_file_id)} == {"batch_expired"}  # type: ignore[index]


def test_a_batch_cancelled_while_validating_ends_cancelled_without_files(world: World) -> None:
    # Given
    job = world.submit(b"")
    with world.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
    # When
    finalize(world.services, job.public_id)
    # Then
    ended = world.job(job.public_id)
    assert (ended.state, ended.output_file_id, ended.error_file_id) == (JobState.CANCELLED, None, None)


def test_every_row_of_an_ended_job_has_exactly_one_outcome(world: World) -> None:
    # Given
    job = world.start_job(30)
    run_all(world, fail=frozenset({7}))
    # When
    finalize(world.services, job.public_id)
    # Then
    with world.database.begin() as session:
        counted = session.execute(
            text("SELECT count(*), count(DISTINCT index) FROM outcomes WHERE job_id = :id"), {"id": job.id}
        ).one()
    assert tuple(counted) == (30, 30)


def test_a_lost_message_is_sent_again_by_the_reconciler(world: World) -> None:
    # Given a finished job whose finalizing message was lost, and a batch whose validation message was lost
    job = world.start_job(5)
    run_all(world)
    forgotten = world.submit(b"{}")
    with world.database.begin() as session:
        session.execute(text("UPDATE jobs SET created_at = created_at - interval '1 minute'"))
    # When
    reconciler.move_on(world.services)
    # Then
    sent = [str(message) for message in world.services.redis.lrange("upkeep", 0, -1)]
    assert len(sent) == 2
    assert any("millrace.finalize_job" in message and job.public_id in message for message in sent)
    assert any("millrace.validate_batch" in message and forgotten.public_id in message for message in sent)
