"""Files and batches as OpenAI's client knows them: what is accepted and refused, shown, listed, expired and removed."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from sqlalchemy import text

from core.job import JobState
from tasks.upkeep.finalizing import finalize
from tasks.upkeep.intake import validate
from tests.world import World, batch_file, success

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
DAY = 24 * 3600


def create(official: OpenAI, file_id: str, **named: Any) -> openai.types.Batch:
    return official.batches.create(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", **named)


@pytest.mark.parametrize(
    ("purpose", "code"), [("fine-tune", "unsupported_parameter"), ("assistants", "unsupported_parameter"), ("x", None)]
)
def test_a_purpose_that_nothing_serves_is_refused_by_name(official: OpenAI, purpose: Any, code: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        official.files.create(file=("a.jsonl", b"{}"), purpose=purpose)
    assert refused.value.param == "purpose"
    assert refused.value.code == (code or "invalid_request")


def test_a_file_shows_what_openai_shows(official: OpenAI) -> None:
    # When
    file = official.files.create(file=("notes.txt", b"notes"), purpose="user_data")
    # Then
    assert (file.bytes, file.filename, file.purpose, file.status) == (5, "notes.txt", "user_data", "processed")
    assert official.files.retrieve(file.id) == file


@pytest.mark.parametrize("seconds", [3599, 30 * DAY + 1])
def test_an_expiry_out_of_bounds_is_refused(official: OpenAI, seconds: int) -> None:
    with pytest.raises(openai.BadRequestError):
        official.files.create(
            file=("a", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": seconds}
        )


def test_half_an_expiry_is_refused(official: OpenAI) -> None:
    half: Any = {"seconds": 7200}
    with pytest.raises(openai.BadRequestError) as refused:
        official.files.create(file=("a", b"{}"), purpose="batch", expires_after=half)
    assert refused.value.param == "expires_after"


def test_a_deleted_file_is_gone_and_its_batch_is_not(world: World, official: OpenAI) -> None:
    # Given
    file_id = world.upload(batch_file(range(1)))
    batch = create(official, file_id)
    # When
    assert official.files.delete(file_id).deleted
    # Then
    for look in (official.files.retrieve, official.files.content, official.files.delete):
        with pytest.raises(openai.NotFoundError):
            look(file_id)
    assert not validate(world.services, batch.id)
    failed = official.batches.retrieve(batch.id)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert failed.errors.data[0].code == "file_not_found"


def test_files_of_a_purpose_are_listed_over_all_pages(world: World, official: OpenAI) -> None:
    # Given
    ids = [world.upload(b"{}") for _ in range(5)]
    world.upload(b"{}", purpose="user_data")
    # When / Then
    assert [file.id for file in official.files.list(purpose="batch", limit=2)] == ids[::-1]
    assert [file.id for file in official.files.list(purpose="batch", limit=2, order="asc")] == ids
    with pytest.raises(openai.NotFoundError):
        official.files.list(after="file-unknown")


def test_batches_are_listed_over_all_pages(world: World, official: OpenAI) -> None:
    # Given
    file_id = world.upload(batch_file(range(1)))
    ids = [create(official, file_id).id for _ in range(5)]
    # When / Then
    assert [batch.id for batch in official.batches.list(limit=2)] == ids[::-1]
    with pytest.raises(openai.NotFoundError):
        official.batches.list(after="batch_unknown")


def test_an_unknown_field_of_a_batch_is_refused(world: World, official: OpenAI) -> None:
    file_id = world.upload(batch_file(range(1)))
    with pytest.raises(openai.BadRequestError) as refused:
        create(official, file_id, extra_body={"prioriy": 9})
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "prioriy")


@pytest.mark.parametrize(
    "metadata",
    [{f"key{index}": "x" for index in range(17)}, {"k" * 65: "x"}, {"key": "x" * 513}],
    ids=["many", "long key", "long value"],
)
def test_metadata_out_of_bounds_is_refused(world: World, official: OpenAI, metadata: dict[str, str]) -> None:
    with pytest.raises(openai.BadRequestError):
        create(official, world.upload(batch_file(range(1))), metadata=metadata)


def test_metadata_within_bounds_comes_back(world: World, official: OpenAI) -> None:
    metadata = {"k" * 64: "x" * 512, **{f"key{index}": "" for index in range(15)}}
    batch = create(official, world.upload(batch_file(range(1))), metadata=metadata)
    assert official.batches.retrieve(batch.id).metadata == metadata


@pytest.mark.parametrize("priority", [-1, 10])
def test_a_priority_is_from_0_to_9(world: World, official: OpenAI, priority: int) -> None:
    file_id = world.upload(batch_file(range(1)))
    with pytest.raises(openai.BadRequestError):
        create(official, file_id, extra_body={"priority": priority})
    batch = create(official, file_id, extra_body={"priority": 9})
    assert world.job(batch.id).priority == 9


def test_the_files_of_a_batch_expire_as_its_user_asked(world: World, official: OpenAI) -> None:
    # Given
    batch = create(
        official,
        world.upload(batch_file(range(2))),
        output_expires_after={"anchor": "created_at", "seconds": 2 * DAY},
    )
    assert validate(world.services, batch.id)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0), success(1)])
    # When
    finalize(world.services, batch.id)
    # Then
    ended = official.batches.retrieve(batch.id)
    assert ended.output_file_id is not None
    output = official.files.retrieve(ended.output_file_id)
    assert output.purpose == "batch_output"
    assert output.expires_at == output.created_at + 2 * DAY


def test_usage_counts_cached_tokens_while_it_runs_and_when_it_has_ended(world: World, official: OpenAI) -> None:
    # Given
    batch = create(official, world.upload(batch_file(range(2))))
    assert validate(world.services, batch.id)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [_with_cached(0, 2)])
    assert _cached(official, batch.id) == 2
    # When
    world.write(lease, [_with_cached(1, 3)])
    finalize(world.services, batch.id)
    # Then
    assert _cached(official, batch.id) == 5


def _with_cached(index: int, num_tokens: int) -> Any:

    return replace(success(index), cached_tokens=num_tokens)


def _cached(official: OpenAI, batch_id: str) -> int:
    usage = official.batches.retrieve(batch_id).usage
    assert usage is not None
    return usage.input_tokens_details.cached_tokens


def test_a_batch_is_cancelled_before_it_was_validated(world: World, official: OpenAI) -> None:
    # Given
    batch = create(official, world.upload(batch_file(range(3))))
    # When
    assert official.batches.cancel(batch.id).status == "cancelling"
    # Then
    assert not validate(world.services, batch.id)
    finalize(world.services, batch.id)
    ended = official.batches.retrieve(batch.id)
    assert (ended.status, ended.output_file_id, ended.error_file_id) == ("cancelled", None, None)
    with pytest.raises(openai.ConflictError):
        official.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [
        (
            JobState.EXPIRED,
            "batch_expired",
            "This request could not be executed before the completion window expired.",
        ),
        (JobState.CANCELLED, "batch_cancelled", "This request was not executed because the batch was cancelled."),
    ],
)
def test_rows_that_never_ran_have_lines_as_openai_writes_them(
    world: World, ending: JobState, code: str, message: str
) -> None:
    # Given
    job = world.start_job(1, window=timedelta(seconds=60))
    with world.database.begin() as session:
        session.execute(text("UPDATE jobs SET ending = :ending"), {"ending": ending.value})
        session.execute(text("UPDATE chunks SET state = 'cancelled'"))
        if ending is JobState.CANCELLED:
            session.execute(text("UPDATE jobs SET state = 'cancelling'"))
    # When
    finalize(world.services, job.public_id)
    # Then
    ended = world.job(job.public_id)
    (line,) = world.read_lines(ended.error_file_id)
    assert str(line.pop("id")).startswith("batch_req_")
    assert line == {"custom_id": "row-0", "response": None, "error": {"code": code, "message": message}}
    assert (ended.num_requests, ended.num_completed, ended.num_failed) == (1, 0, 1)
