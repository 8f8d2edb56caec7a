"""Validation of batch files: good ones become requests and chunks, bad ones are refused whole with line numbers."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from core.job import JobState
from core.openai.batchfile import split_lines
from core.openai.completion import TEXT_ENDPOINT
from tasks.services import Services
from tasks.upkeep.intake import validate
from tests.world import MODEL, World, batch_file, changed, chat_line


def refusal(world: World, content: bytes, *, endpoint: str = "/v1/chat/completions") -> list[dict[str, object]]:
    """The errors of a batch of this file, which must have been refused without leaving a row."""
    job = world.submit(content, endpoint=endpoint)
    assert not validate(world.services, job.public_id)
    refused = world.job(job.public_id)
    assert refused.state == JobState.FAILED
    assert refused.errors is not None
    with world.database.begin() as session:
        assert session.execute(text("SELECT count(*) FROM requests WHERE job_id = :id"), {"id": job.id}).scalar() == 0
    data = refused.errors["data"]
    assert isinstance(data, list)
    return data


def first_refusal(world: World, content: bytes, **named: str) -> tuple[object, object, object]:
    first = refusal(world, content, **named)[0]
    return first["code"], first["line"], first["param"]


def test_bodies_are_kept_as_they_came(world: World) -> None:
    # Given text that JSON databases tend to change: escapes, order of keys, spaces, a NUL character
    body_sent = '{"seed" : 1,"prompt":"\\u0000\\ud83d\\ude00 é","model":"test/model"}'
    line = f'{{"custom_id":"a","method":"POST","url":"/v1/completions","body":{body_sent}}}'.encode()
    job = world.submit(line, endpoint=TEXT_ENDPOINT)
    # When
    assert validate(world.services, job.public_id)
    # Then
    with world.database.begin() as session:
        body = session.execute(text("SELECT body FROM requests")).scalar_one()
    assert body == body_sent


def test_blank_lines_and_windows_line_ends_are_harmless(world: World) -> None:
    # Given
    content = b"\r\n".join([chat_line("a"), b"", chat_line("b"), b"   ", b""])
    job = world.submit(content)
    # When / Then
    assert validate(world.services, job.public_id)
    assert world.job(job.public_id).num_requests == 2


@pytest.mark.parametrize(
    ("bad_line", "expected"),
    [
        (b"not json", ("invalid_json_line", 2, None)),
        (b"[1, 2]", ("invalid_line", 2, None)),
        (b'{"method":"POST"', ("invalid_json_line", 2, None)),
        (b"\xff\xfe", ("invalid_json_line", 2, None)),
        (b'{"method":"POST","url":"/v1/chat/completions","body":{}}', ("missing_custom_id", 2, None)),
        (b'{"custom_id":7,"method":"POST","url":"/v1/chat/completions","body":{}}', ("missing_custom_id", 2, None)),
        (chat_line("row-0"), ("duplicate_custom_id", 2, "custom_id")),
        (chat_line(""), ("invalid_request", 2, "custom_id")),
        (chat_line("a\0b"), ("invalid_request", 2, "custom_id")),
        (chat_line("x").replace(b"POST", b"GET"), ("invalid_method", 2, "method")),
        (chat_line("x").replace(b"/v1/chat/completions", b"/v1/completions"), ("invalid_url", 2, "url")),
        (chat_line("x").replace(b"/v1/chat/completions", b"/v2/other"), ("invalid_endpoint", 2, "url")),
        (chat_line("x", model="test/other"), ("mismatched_model", 2, "body.model")),
        (chat_line("x", stream=True), ("unsupported_parameter", 2, "body.stream")),
        (chat_line("x", best_of=3), ("unsupported_parameter", 2, "body.best_of")),
        (chat_line("x", temperature="hot"), ("invalid_type", 2, "body.temperature")),
        (chat_line("x", max_tokens=0), ("invalid_type", 2, "body.max_tokens")),
        (chat_line("x", messages=[]), ("invalid_type", 2, "body.messages")),
        (
            chat_line("x", messages=[{"role": "robot", "content": "hi"}]),
            ("invalid_request", 2, "body.messages[0].role"),
        ),
        (chat_line("x", messages=[{"role": "user", "content": 5}]), ("invalid_request", 2, "body.messages[0].content")),
    ],
)
def test_a_bad_line_refuses_the_file_and_names_itself(
    world: World, bad_line: bytes, expected: tuple[object, object, object]
) -> None:
    # Given / When
    found = first_refusal(world, chat_line("row-0") + b"\n" + bad_line + b"\n" + chat_line("row-9"))
    # Then
    assert found == expected


def test_an_unknown_model_is_named_on_its_line(world: World) -> None:
    # Given / When
    (error, *_) = refusal(world, chat_line("a", model="nobody/nothing"))
    # Then
    assert (error["code"], error["line"]) == ("model_not_found", 1)
    assert "nobody/nothing" in str(error["message"])


def test_an_empty_file_is_refused(world: World) -> None:
    assert first_refusal(world, b"\n\n") == ("empty_file", None, None)


def test_more_rows_than_allowed_are_refused(world: World) -> None:
    # Given
    world.services = _with_settings(world, max_batch_rows=5)
    # When / Then
    assert first_refusal(world, batch_file(range(6))) == ("too_many_requests", None, None)


def test_the_first_hundred_errors_are_reported_with_their_lines(world: World) -> None:
    # Given
    content = chat_line("good") + b"\n" + b"broken\n" * 300
    # When
    errors = refusal(world, content)
    # Then
    assert [error["line"] for error in errors] == list(range(2, 102))


def test_a_line_of_many_megabytes_is_refused_before_it_is_read_whole(world: World) -> None:
    # Given
    content = chat_line("a") + b"\n" + b"x" * (18 * 1024 * 1024)
    # When / Then
    assert first_refusal(world, content) == ("line_too_long", 2, None)


def test_a_file_that_was_deleted_meanwhile_fails_the_batch(world: World) -> None:
    # Given
    job = world.submit(batch_file(range(2)))
    assert job.input_file_id is not None
    world.services.files.delete(job.input_file_id)
    # When
    assert not validate(world.services, job.public_id)
    # Then
    refused = world.job(job.public_id)
    assert refused.errors is not None
    assert refused.errors["data"][0]["code"] == "file_not_found"


def test_a_validated_batch_is_not_validated_again(world: World) -> None:
    # Given
    job = world.start_job(5)
    # When / Then
    assert not validate(world.services, job.public_id)
    assert world.job(job.public_id).num_requests == 5


def test_memory_stays_flat_while_lines_are_read() -> None:
    """The reader holds one block and one line; a generator that is far ahead of its consumer would show."""
    # Given
    handed_out = 0

    def blocks() -> Iterator[bytes]:
        nonlocal handed_out
        for _ in range(1000):
            handed_out += 1
            yield json.dumps({"n": handed_out}).encode() + b"\n"

    # When
    lines = split_lines(blocks())
    first = next(lines)
    # Then
    assert json.loads(first) == {"n": 1}
    assert handed_out == 1


def _with_settings(world: World, **values: object) -> Services:
    return replace(world.services, settings=changed(world.services.settings, **values))


def test_the_model_of_the_file_becomes_the_model_of_the_job(world: World) -> None:
    assert world.start_job(3).model == MODEL
