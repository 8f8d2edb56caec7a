"""Validation of batch files: good ones become requests and chunks, bad ones are refused whole with line numbers, and
the job can be cancelled and changed all the while."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text

from core.job import JobState
from core.openai.batchfile import split_lines
from core.openai.completion import TEXT_ENDPOINT
from db import jobs
from db.files import FileStore
from db.native import submission
from db.native.submission import JobChange
from db.tables import JobRow
from tasks.services import Services
from tasks.upkeep import intake as validation
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


@dataclass
class HeldFiles:
    """A file store whose readers wait after `held_after` blocks, each of a line, until they are let go."""

    kept: FileStore
    held_after: int
    is_held: threading.Event = field(default_factory=threading.Event)
    is_let_go: threading.Event = field(default_factory=threading.Event)
    num_read: int = 0

    def read(self, file_id: str) -> Iterator[bytes]:
        lines = b"".join(self.kept.read(file_id)).splitlines(keepends=True)
        for line in lines[: self.held_after]:
            yield line
        self.is_held.set()
        assert self.is_let_go.wait(60)
        for line in lines[self.held_after :]:
            self.num_read += 1
            yield line

    def write(self, file_id: str, blocks: Iterable[bytes]) -> int:
        return self.kept.write(file_id, blocks)

    def delete(self, file_id: str) -> None:
        self.kept.delete(file_id)

    def stored(self, *, older_than: timedelta) -> Iterator[str]:
        return self.kept.stored(older_than=older_than)


NUM_ROWS = 30


@contextmanager
def held_validation(world: World, job: JobRow, *, held_after: int) -> Iterator[Callable[[], bool]]:
    """While a worker is in the middle of validating the job; the yielded function lets it go and says how it ended."""
    files = HeldFiles(world.services.files, held_after)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(validate, replace(world.services, files=files), job.public_id)
        assert files.is_held.wait(60)

        def let_go() -> bool:
            files.is_let_go.set()
            return result.result()

        try:
            yield let_go
        finally:
            files.is_let_go.set()


def counts(world: World, job: JobRow) -> tuple[int, int, int]:
    """Requests, chunks and outcomes."""
    with world.database.begin() as session:
        row = session.execute(
            text(
                "SELECT (SELECT count(*) FROM requests WHERE job_id = :id), (SELECT count(*) FROM chunks WHERE"
                " job_id = :id), (SELECT count(*) FROM outcomes WHERE job_id = :id)"
            ),
            {"id": job.id},
        ).one()
    return row[0], row[1], row[2]


@pytest.mark.parametrize("held_after", [0, NUM_ROWS // 2, NUM_ROWS])
def test_a_cancel_does_not_wait_for_the_validation_and_leaves_nothing_to_run(world: World, held_after: int) -> None:
    # Given
    job = world.submit(batch_file(range(NUM_ROWS)))
    with held_validation(world, job, held_after=held_after) as let_go:
        # When
        with world.database.begin() as session:
            assert jobs.stop(session, job, JobState.CANCELLED)
        # Then
        assert world.job(job.public_id).state == JobState.CANCELLING
        # When
        assert not let_go()
    # Then
    assert world.job(job.public_id).state == JobState.CANCELLED
    assert counts(world, job) == (0, 0, 0)
    assert world.claim() is None


def test_a_validation_whose_job_is_cancelled_reads_no_further(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setattr(validation, "LOOK_SECONDS", 0.0)
    job = world.submit(batch_file(range(NUM_ROWS)))
    files = HeldFiles(world.services.files, NUM_ROWS // 2)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(validate, replace(world.services, files=files), job.public_id)
        assert files.is_held.wait(60)
        # When
        with world.database.begin() as session:
            jobs.stop(session, job, JobState.CANCELLED)
        files.is_let_go.set()
        # Then
        assert not result.result()
    assert files.num_read == 1
    assert world.job(job.public_id).state == JobState.CANCELLED


def test_what_is_changed_during_the_validation_holds_for_what_it_makes(world: World) -> None:
    # Given
    job = world.submit(batch_file(range(NUM_ROWS)), priority=2)
    deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    with held_validation(world, job, held_after=NUM_ROWS) as let_go:
        # When
        with world.database.begin() as session:
            changed_job = jobs.find(session, job.public_id, tenant=job.tenant)
            submission.change(session, changed_job, JobChange(priority=7, deadline=deadline))
        # Then
        assert let_go()
    accepted = world.job(job.public_id)
    assert (accepted.state, accepted.priority, accepted.expires_at) == (JobState.IN_PROGRESS, 7, deadline)
    with world.database.begin() as session:
        assert set(session.execute(text("SELECT priority FROM chunks")).scalars()) == {7}
    assert world.claim() is not None


def test_one_validates_at_a_time_also_beside_the_release_before(world: World) -> None:
    # Given
    job = world.submit(batch_file(range(NUM_ROWS)))
    with held_validation(world, job, held_after=NUM_ROWS // 2) as let_go:
        # When / Then another one leaves it alone
        assert not validate(world.services, job.public_id)
        # Then one of the release before does, too, which locks the row
        whole_row = select(JobRow).where(JobRow.id == job.id).with_for_update(skip_locked=True)
        with world.database.begin() as session:
            assert session.scalar(whole_row) is None
        assert let_go()
    assert counts(world, job) == (NUM_ROWS, 3, 0)
    # Given one that the release before validates
    other = world.submit(batch_file(range(NUM_ROWS)))
    with world.database.begin() as session:
        session.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": other.id})
        # When / Then
        assert not validate(world.services, other.public_id)
