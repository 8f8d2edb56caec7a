"""What SIGTERM does to each part of a running Millrace, and what it does not do to the rows that are under way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

import httpx
import psutil
import psycopg
import pytest

from core.openai.completion import CHAT_ENDPOINT
from tests.chaos.schedule import Kind
from tests.chaos.single import SLOW, SLOWER, Asked, Reading, Single
from tests.null_answers import answer_to
from tests.polling import until

NAMES = {
    Kind.ONLINE: "online-cpu",
    Kind.BATCH: "batch-cpu",
    Kind.CONTROL: "control",
    Kind.UPKEEP: "upkeep",
    Kind.ENGINE: "engine-cpu",
    Kind.BEAT: "beat",
}


def restart(single: Single, *kinds: Kind) -> None:
    """By SIGTERM, until they are back."""
    for kind in kinds:
        single.part(kind).terminate()
    for kind in kinds:
        wait_for(single, NAMES[kind], "ended with exit status 0; it is started again")
    for kind in kinds:
        wait_for(single, NAMES[kind], "(again)")


def wait_for(single: Single, *words: str) -> None:
    """Until `up` has said a line with all the words."""
    until(lambda: any(all(word in line for word in words) for line in single.up.output().splitlines()))


def attempts_counted(single: Single, job: str) -> list[int]:
    """Of each chunk: claims that did not end by handing it back."""
    with psycopg.connect(single.database_url) as connection:
        rows = connection.execute(
            "SELECT attempt - num_handed_back FROM chunks JOIN jobs ON jobs.id = job_id WHERE public_id = %s", [job]
        ).fetchall()
    return [row[0] for row in rows]


def test_a_rolling_restart_under_load_fails_no_row_and_counts_no_attempt(single: Single) -> None:
    # Given
    job = single.start(6000)
    # When
    restart(single, Kind.BATCH)
    restart(single, Kind.ENGINE)
    restart(single, Kind.ONLINE, Kind.CONTROL, Kind.UPKEEP, Kind.BEAT)
    # Then
    assert single.facts.num_done(job) < 6000, "the rows were done before the restarts were"
    assert not single.finish(max_attempts=1 + len(NAMES))
    assert set(attempts_counted(single, job)) == {1}


def test_an_api_that_is_asked_to_end_answers_those_who_wait(single: Single) -> None:
    # Given somebody whose answer takes two seconds
    asked = Asked(single, "how are you", SLOW)
    until(lambda: "how are you" in single.online_prompts())
    # When
    single.part(Kind.API).terminate()
    asked.wait()
    # Then
    assert asked.response is not None
    answer = asked.response.json()["choices"][0]["message"]["content"]
    assert answer == answer_to([{"role": "user", "content": "how are you"}])
    until(single.answers)


def test_a_second_sigterm_ends_the_api_at_once(single: Single) -> None:
    # Given somebody whose answer takes a minute
    asked = Asked(single, "what is a minute", SLOWER)
    until(lambda: "what is a minute" in single.online_prompts())
    # When
    victim = single.part(Kind.API)
    num_ends = single.log("api").count("Shutting down")
    victim.terminate()
    until(lambda: single.log("api").count("Shutting down") > num_ends)
    victim.terminate()
    asked.wait()
    # Then: no answer, not even that there is none
    assert asked.error is not None
    until(single.answers)


def test_a_second_sigterm_ends_a_worker_that_cannot_write(single: Single) -> None:
    # Given a worker in the middle of its chunks, and a database that hangs
    single.start(1000)
    victim = single.part(Kind.BATCH)
    num_drains = single.log("batch-cpu").count("draining")
    with single.frozen("postgres"):
        # When
        victim.terminate()
        until(lambda: single.log("batch-cpu").count("draining") > num_drains)
        victim.terminate()
        # Then
        wait_for(single, "batch-cpu ended with exit status 1")
    assert not single.finish()


def test_up_ends_within_its_grace_with_rows_under_way_and_goes_on_where_it_was(single: Single) -> None:
    # Given
    job = single.start(3000)
    # When
    assert single.up.stop() == 0
    said = single.up.output()
    single.up.keep_running()
    until(single.answers)
    # Then
    assert "killing" not in said
    assert not single.finish(max_attempts=3)
    assert set(attempts_counted(single, job)) == {1}


@contextmanager
def heavy_job(single: Single) -> Iterator[str]:
    """One that is in the middle of a minute of work; cancelled in the end."""
    until(single.answers)
    body = {"kind": "warming", "model": SLOWER, "prompts": ["a minute of work"]}
    job = str(httpx.post(f"{single.url}/api/v1/jobs", json=body, timeout=60).json()["id"])
    until(lambda: "prompt 1 of 1" in said_by(single, job))
    yield job
    until(single.answers)
    assert httpx.delete(f"{single.url}/api/v1/jobs/{job}", timeout=60).status_code == 202
    until(lambda: one(single, "SELECT state FROM jobs WHERE public_id = %s", job) == "cancelled")


def heavy_worker(single: Single) -> psutil.Process:
    (worker,) = single.up.parts("heavy-cpu@")
    return worker


def said_by(single: Single, job: str) -> str:
    """How far a job that is no inference says that it is."""
    query = "SELECT message FROM heavy_jobs JOIN jobs ON jobs.id = job_id WHERE public_id = %s"
    return str(one(single, query, job))


def claims(single: Single, job: str) -> object:
    return one(single, "SELECT attempt FROM chunks JOIN jobs ON jobs.id = job_id WHERE public_id = %s", job)


def one(single: Single, query: LiteralString, job: str) -> object:
    with psycopg.connect(single.database_url) as connection:
        row = connection.execute(query, [job]).fetchone()
    assert row is not None
    return row[0]


@dataclass
class Departure:
    """What became of those who read along, and of a heavy job, when API and heavy worker were asked to end.
    attempts: of the job, those that count, once it was claimed again."""

    answer: Reading
    response: Reading
    events: Reading
    attempts: list[int]


@pytest.fixture(scope="module")
def departure(single: Single) -> Departure:
    with heavy_job(single) as job:
        messages = [{"role": "user", "content": "two seconds"}]
        answer = Reading(single, "POST", CHAT_ENDPOINT, {"model": SLOW, "messages": messages, "stream": True})
        response = Reading(single, "POST", "/v1/responses", {"model": SLOWER, "input": "a minute", "stream": True})
        events = Reading(single, "GET", f"/api/v1/jobs/{job}/events")
        readings = (answer, response, events)
        until(lambda: all(reading.text for reading in readings))
        single.part(Kind.API).terminate()
        heavy_worker(single).terminate()
        for reading in readings:
            reading.wait()
        wait_for(single, "heavy-cpu", "ended with exit status 0; it is started again")
        until(lambda: claims(single, job) == 2)
        attempts = attempts_counted(single, job)
    return Departure(answer, response, events, attempts)


def test_a_stream_that_ends_within_the_grace_ends_whole(departure: Departure) -> None:
    deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in departure.answer.data()]
    assert departure.answer.error is None
    assert "".join(deltas) == answer_to([{"role": "user", "content": "two seconds"}])
    assert departure.answer.text.endswith("data: [DONE]\n\n")


def test_a_stream_that_takes_longer_ends_with_an_error_that_says_so(departure: Departure) -> None:
    told = departure.response.data()
    assert departure.response.error is None
    assert told[0]["type"] == "response.created"
    assert (told[-1]["type"], told[-1]["code"]) == ("error", "interrupted")


def test_events_of_a_job_end_without_one_to_be_read_on_elsewhere(departure: Departure) -> None:
    told = departure.events.data()
    assert departure.events.error is None
    assert [event["state"] for event in told if "state" in event] == ["validating", "in_progress"]
    assert "error" not in departure.events.text


def test_a_heavy_worker_that_is_asked_to_end_hands_its_job_back_and_counts_no_attempt(departure: Departure) -> None:
    assert departure.attempts == [1]


def test_a_second_sigterm_ends_a_heavy_worker_that_cannot_write(single: Single) -> None:
    # Given a worker in the middle of a job, and a database that hangs
    with heavy_job(single):
        num_drains = single.log("heavy-cpu").count("draining")
        with single.frozen("postgres"):
            # When
            victim = heavy_worker(single)
            victim.terminate()
            until(lambda: single.log("heavy-cpu").count("draining") > num_drains)
            victim.terminate()
            # Then
            wait_for(single, "heavy-cpu ended with exit status 1")
