"""Servers that are gone, full or stopped under a running job: what is refused meanwhile and how, and that everything
goes on by itself afterwards with exact counts. Two beats run all the time."""

import signal

import httpx
import psutil
import psycopg
import pytest

from tests.chaos.schedule import Kind
from tests.chaos.single import Single
from tests.null_answers import chat_rows, encode
from tests.polling import until


def create_batch(single: Single, file_id: str) -> httpx.Response:
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return httpx.post(f"{single.url}/v1/batches", json=body, timeout=60)


def upload(single: Single, num_rows: int) -> httpx.Response:
    content = encode(chat_rows(num_rows, "null", "uploaded question"))
    return httpx.post(
        f"{single.url}/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}, timeout=60
    )


def assert_come_again(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1


def state(single: Single, job: str) -> str:
    with psycopg.connect(single.database_url) as connection:
        row = connection.execute("SELECT state FROM jobs WHERE public_id = %s", [job]).fetchone()
    assert row is not None
    return str(row[0])


def test_a_broker_that_is_gone_refuses_questions_takes_batches_and_loses_nothing(single: Single) -> None:
    # Given
    job = single.start(800)
    file_id = upload(single, 100).json()["id"]
    with single.without(Kind.VALKEY):
        # When / Then: who waits for an answer is told; a batch is a row, which waits
        until(lambda: httpx.get(f"{single.url}/readyz", timeout=10).status_code == 503)
        assert_come_again(httpx.get(f"{single.url}/readyz", timeout=10))
        assert_come_again(single.ask("is somebody there?"))
        created = create_batch(single, file_id)
        assert created.status_code == 200
        single.remember(created.json()["id"], chat_rows(100, "null", "uploaded question"))
    # Then
    assert not single.finish()
    assert job in single.expected


def test_a_broker_that_was_flushed_is_filled_again(single: Single) -> None:
    # Given a job with messages under way
    single.start(800)
    # When
    single.flush_redis()
    # Then
    assert not single.finish(max_attempts=1)
    until(lambda: single.ask("and people?").is_success)


def test_a_database_that_is_gone_refuses_everything_and_loses_nothing(single: Single) -> None:
    # Given
    single.start(800)
    with single.without(Kind.POSTGRESQL):
        until(lambda: httpx.get(f"{single.url}/readyz", timeout=30).status_code == 503)
        # When / Then
        assert_come_again(create_batch(single, "file-x"))
        assert_come_again(upload(single, 1))
        assert_come_again(single.ask("is somebody there?"))
        assert_come_again(httpx.get(f"{single.url}/v1/batches", timeout=60))
        assert httpx.get(f"{single.url}/healthz", timeout=10).is_success
    # Then
    until(single.answers)
    assert not single.finish()


def test_a_rescue_does_not_wait_for_a_long_validation(single: Single) -> None:
    # Given a job, and an upkeep worker that is busy for as long as we like
    job = single.start(1000)
    upkeep = single.part(Kind.UPKEEP)
    upkeep.suspend()
    try:
        waiting = single.submit(50)
        # When the worker of the chunks dies
        single.part(Kind.BATCH).kill()
        # Then its chunks are taken back and run
        until(lambda: single.facts.num_done(job) == 1000)
        assert state(single, waiting) == "validating"
    finally:
        upkeep.resume()
    assert not single.finish()


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="limits of other processes are Linux's")
def test_a_full_disk_delays_the_result_files_until_there_is_room(single: Single) -> None:
    # Given an upkeep worker that can write no large file
    upkeep = single.part(Kind.UPKEEP)
    before = upkeep.rlimit(psutil.RLIMIT_FSIZE)
    upkeep.rlimit(psutil.RLIMIT_FSIZE, (len(single.log("upkeep")) + 100_000, before[1]))
    # When
    job = single.submit(1000)
    # Then it says so, keeps the job, and leaves no half file
    until(lambda: "millrace.finalize_job put off: the file store" in single.log("upkeep"))
    assert "File too large" in single.log("upkeep")
    assert state(single, job) == "finalizing"
    # When there is room
    upkeep.rlimit(psutil.RLIMIT_FSIZE, before)
    # Then
    assert not single.finish(max_attempts=1)
    assert single.half_files() == []


def test_a_lease_of_another_clock_does_not_hold_a_chunk_for_an_hour(single: Single) -> None:
    # Given a worker that dies with leases that end in an hour
    job = single.start(500)
    worker = single.part(Kind.BATCH)
    worker.send_signal(signal.SIGSTOP)
    with psycopg.connect(single.database_url, autocommit=True) as connection:
        stretched = connection.execute(
            "UPDATE chunks SET lease_until = now() + interval '1 hour' WHERE state = 'running' RETURNING id"
        ).fetchall()
    # When
    worker.kill()
    # Then
    assert stretched
    assert not single.finish()
    assert state(single, job) == "completed"
