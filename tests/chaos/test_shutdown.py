"""What SIGTERM does to each part of a running Millrace, and what it does not do to the rows that are under way."""

import psycopg

from tests.chaos.schedule import Kind
from tests.chaos.single import SLOW, SLOWER, Asked, Single
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
