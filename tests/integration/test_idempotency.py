"""A POST that carries an Idempotency-Key makes its object once, whatever is repeated, runs at once or dies."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Literal

import openai
import pytest
from openai import OpenAI
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_api
from core.errors import Conflict, Unavailable
from core.job import ServiceClass
from db import chunks, idempotency, jobs
from db.chunks import Lease, Outcome
from db.idempotency import Key
from db.jobs import NewBatch
from tests.polling import until
from tests.world import MODEL, World, batch_file

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
KEY = {"Idempotency-Key": "abc"}


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(create_api(world.services.settings), base_url="http://127.0.0.1") as client:
        yield client


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


def ask(client: OpenAI, content: str = "hi") -> str | None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], extra_headers=KEY
    )
    return answer.choices[0].message.content


def answer_next(world: World, answer: str) -> None:
    """As an online worker would."""
    leases: list[Lease] = []

    def claims() -> bool:
        with world.database.begin() as session:
            lease = chunks.claim(
                session, owner="w", service_class=ServiceClass.ONLINE.value, models=[MODEL], lease_seconds=60.0
            )
        leases.extend(filter(None, [lease]))
        return bool(leases)

    until(claims)
    (lease,) = leases
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]}
    world.write(lease, [Outcome(0, 200, json.dumps({"id": "chatcmpl-1", "object": "chat.completion", **body}))])
    world.services.relay.announce(lease.job_public_id)


def test_a_question_asked_twice_at_once_runs_once(world: World, official: OpenAI) -> None:
    # Given
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, official) for _ in range(4)]
        # When
        answer_next(world, "the answer")
        answers = {future.result() for future in waiting}
    # Then
    assert answers == {"the answer"}
    assert count(world, "jobs") == 1
    # When / Then
    assert ask(official) == "the answer"
    with pytest.raises(openai.ConflictError):
        ask(official, "something else")


def test_a_question_whose_client_left_is_answered_when_it_comes_back(world: World, official: OpenAI) -> None:
    # Given
    with pytest.raises(openai.APITimeoutError):
        ask(official.with_options(timeout=0.5))
    # When
    answer_next(world, "the answer")
    # Then
    assert ask(official) == "the answer"
    assert count(world, "jobs") == 1


def test_a_question_that_was_stopped_runs_anew(world: World, official: OpenAI) -> None:
    # Given
    with pytest.raises(openai.APITimeoutError):
        ask(official.with_options(timeout=0.5))
    until(lambda: count(world, "chunks") == 1)
    with world.database.begin() as session:
        session.execute(text("UPDATE jobs SET ending = 'expired'"))
        session.execute(text("UPDATE chunks SET state = 'cancelled'"))
    # When
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, official)
        answer_next(world, "the answer")
    # Then
    assert waiting.result() == "the answer"
    assert count(world, "jobs") == 2


def test_a_native_job_submitted_twice_is_one(world: World, client: TestClient) -> None:
    # Given
    body = {"model": MODEL, "prompts": ["What is a list?"], "kind": "inference"}
    # When
    first, second = (client.post("/api/v1/jobs", json=body, headers=KEY) for _ in range(2))
    # Then
    assert first.status_code == second.status_code == 201
    assert first.json()["id"] == second.json()["id"]
    assert count(world, "jobs") == 1
