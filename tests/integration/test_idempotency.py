"""A POST that carries an Idempotency-Key makes its object once, whatever is repeated, runs at once or dies."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Literal

import openai
import pytest
from openai import OpenAI
from sqlalchemy import text

from core.errors import Conflict, Unavailable
from db import idempotency, jobs
from db.idempotency import Key
from db.jobs import NewBatch
from tests.world import World, batch_file

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
KEY = {"Idempotency-Key": "abc"}


def count(world: World, table: str) -> int:
    with world.database.begin() as session:
        return int(session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def create_batch(client: OpenAI, file_id: str, **named: object) -> str:
    batch = client.batches.create(
        input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", extra_headers=KEY, extra_body=named
    )
    return batch.id


def test_the_same_batch_twice_is_one(world: World, official: OpenAI) -> None:
    # Given
    file_id = world.upload(batch_file(range(2)))
    # When
    first, second = create_batch(official, file_id), create_batch(official, file_id)
    # Then
    assert first == second
    assert count(world, "jobs") == 1


def test_another_body_under_the_same_key_is_refused(world: World, official: OpenAI) -> None:
    # Given
    file_id = world.upload(batch_file(range(2)))
    create_batch(official, file_id)
    # When
    with pytest.raises(openai.ConflictError) as refused:
        create_batch(official, file_id, priority=7)
    # Then
    assert refused.value.code == "idempotency_key_reused"
    assert refused.value.param == "Idempotency-Key"
    assert count(world, "jobs") == 1


def test_a_refused_call_leaves_the_key_free(world: World, official: OpenAI) -> None:
    # Given
    with pytest.raises(openai.NotFoundError):
        create_batch(official, "file-unknown")
    # When / Then
    assert create_batch(official, world.upload(batch_file(range(1))))


def test_the_same_upload_twice_is_one_file(world: World, official: OpenAI) -> None:
    # When
    first, second = (
        official.files.create(file=("a.jsonl", b"{}\n"), purpose="batch", extra_headers=KEY) for _ in range(2)
    )
    # Then
    assert first == second
    assert (count(world, "files"), count(world, "file_blocks")) == (1, 1)


@pytest.mark.parametrize(
    ("name", "content", "purpose"), [("a", b"2", "batch"), ("b", b"1", "batch"), ("a", b"1", "user_data")]
)
def test_an_upload_that_differs_in_anything_is_refused(
    world: World, official: OpenAI, name: str, content: bytes, purpose: str
) -> None:
    # Given
    official.files.create(file=("a", b"1"), purpose="batch", extra_headers=KEY)
    # When / Then
    with pytest.raises(openai.ConflictError):
        official.files.create(file=(name, content), purpose=purpose, extra_headers=KEY)  # type: ignore[arg-type]
    assert (count(world, "files"), count(world, "file_blocks")) == (1, 1)


def test_many_at_once_make_one(world: World, official: OpenAI) -> None:
    # Given
    file_id = world.upload(batch_file(range(1)))
    # When
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_batch(official, file_id), range(16)))
        uploads = list(
            pool.map(
                lambda _: official.files.create(file=("a", b"{}"), purpose="batch", extra_headers=KEY).id, range(16)
            )
        )
    # Then
    assert (len(set(made)), len(set(uploads))) == (1, 1)
    assert (count(world, "jobs"), count(world, "files"), count(world, "file_blocks")) == (1, 2, 2)


def make_batch_and_die(world: World) -> None:
    batch = NewBatch(
        endpoint=ENDPOINT, input_file_id="file-1", completion_window="24h", expires_after=timedelta(hours=1)
    )
    key = Key("default", "/v1/batches", "abc", b"hash")
    with world.database.begin() as session:
        assert idempotency.recall(session, key) is None
        idempotency.remember(session, key, jobs.create_batch(session, batch).public_id)
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def test_a_crash_before_the_commit_leaves_neither_key_nor_batch(world: World) -> None:
    # When
    with pytest.raises(Unavailable):
        make_batch_and_die(world)
    # Then
    assert (count(world, "jobs"), count(world, "idempotency_keys")) == (0, 0)


def test_a_key_is_of_one_tenant_and_one_route(world: World) -> None:
    # Given
    with world.database.begin() as session:
        idempotency.remember(session, Key("a", "/v1/batches", "abc", b"1"), "batch_1")
    # When / Then
    with world.database.begin() as session:
        assert idempotency.recall(session, Key("a", "/v1/batches", "abc", b"1")) == "batch_1"
        assert idempotency.recall(session, Key("b", "/v1/batches", "abc", b"2")) is None
        assert idempotency.recall(session, Key("a", "/v1/files", "abc", b"2")) is None
    with pytest.raises(Conflict), world.database.begin() as session:
        idempotency.recall(session, Key("a", "/v1/batches", "abc", b"2"))
