"""How jobs end: the files that are written, once, whatever runs twice or dies in between."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import text

from core.job import JobState
from core.openai.completion import CHAT_ENDPOINT
from db import chunks, jobs, results
from db.chunks import Outcome
from db.jobs import NewOnlineRequest
from db.tables import JobRow
from tasks.upkeep import reconciler
from tasks.upkeep.finalizing import finalize
from tasks.upkeep.intake import validate
from tests.world import MODEL, World, chat_line, failure, success


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
        session.execute(text("UPDATE jobs SET look_at = now()"))
    # When
    reconciler.move_on(world.services)
    # Then
    sent = [str(message) for message in world.services.redis.lrange("upkeep", 0, -1)]
    assert len(sent) == 2
    assert any("millrace.finalize_job" in message and job.public_id in message for message in sent)
    assert any("millrace.validate_batch" in message and forgotten.public_id in message for message in sent)


def test_a_line_of_each_file_is_as_openai_writes_it(world: World) -> None:
    # Given a job of which one row was answered, one failed, and one never ran
    names = ['a\n"b"\u2028\\', "mine-1", "mine-2"]
    job = world.submit(b"".join(chat_line(name) + b"\n" for name in names))
    assert validate(world.services, job.public_id)
    lease = world.claim()
    assert lease is not None
    answer = Outcome(0, 200, json.dumps({"choices": ['\\ "\u2028']}))
    world.write(lease, [answer, Outcome(1, 400, '{"error":{"code":"x"}}')])
    with world.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
    with world.database.begin() as session:
        chunks.hand_back(session, lease)
    # When
    finalize(world.services, job.public_id)
    # Then
    ended = world.job(job.public_id)
    ids = [f"batch_req_{job.public_id.removeprefix('batch_')}_{index}" for index in range(3)]
    assert world.read_lines(ended.output_file_id) == [
        {
            "id": ids[0],
            "custom_id": names[0],
            "response": {"status_code": 200, "request_id": ids[0], "body": {"choices": ['\\ "\u2028']}},
            "error": None,
        }
    ]
    failed, never_ran = world.read_lines(ended.error_file_id)
    assert failed["response"] == {"status_code": 400, "request_id": ids[1], "body": {"error": {"code": "x"}}}
    assert failed["error"] is None
    assert (never_ran["id"], never_ran["custom_id"], never_ran["response"]) == (ids[2], "mine-2", None)
    assert never_ran["error"]["code"] == "batch_cancelled"  # type: ignore[index]


def test_lines_of_many_pages_come_in_order_and_once(world: World) -> None:
    # Given more rows than a page has, every third of them failed
    num_rows = 2 * results.PAGE_ROWS + 3
    job = world.start_job(num_rows)
    failing = frozenset(range(0, num_rows, 3))
    run_all(world, fail=failing)
    # When
    finalize(world.services, job.public_id)
    # Then
    ended = world.job(job.public_id)
    output, errors = world.read_lines(ended.output_file_id), world.read_lines(ended.error_file_id)
    assert [line["custom_id"] for line in output] == [f"row-{n}" for n in range(num_rows) if n not in failing]
    assert [line["custom_id"] for line in errors] == [f"row-{n}" for n in sorted(failing)]


def test_many_jobs_that_end_at_once_do_not_wait_for_each_others_connections(world: World) -> None:
    # Given more of them than there are connections, which are ended by as many threads
    request = NewOnlineRequest(endpoint=CHAT_ENDPOINT, model=MODEL, body="{}", expires_after=timedelta(minutes=5))
    with world.database.begin() as session:
        made = [jobs.create_online(session, request) for _ in range(30)]
        for job in made:
            jobs.stop(session, job, JobState.CANCELLED)
    at_once = threading.Barrier(len(made))

    def end(job: JobRow) -> None:
        at_once.wait()
        finalize(world.services, job.public_id)

    # When
    with ThreadPoolExecutor(len(made)) as pool:
        list(pool.map(end, made))
    # Then
    assert {world.job(job.public_id).state for job in made} == {JobState.CANCELLED}
