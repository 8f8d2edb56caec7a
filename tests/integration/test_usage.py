"""Accounting over the real database: every outcome counts once, whoever wrote it, however often it was folded."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_api
from core.errors import LeaseLost
from core.job import JobState
from core.openai.completion import CHAT_ENDPOINT
from db import jobs
from db.access import usage
from db.chunks import Outcome
from db.jobs import NewOnlineRequest
from tasks.services import ChunkRun
from tasks.upkeep import reconciler
from tests.integration.test_chunk_run import InBackground, Node
from tests.polling import until
from tests.world import MODEL, World, changed, failure, success
from workers.engine_client import probe


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    api = create_api(changed(world.services.settings, device_hour_price=3600.0))
    with TestClient(api, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def used(client: TestClient, query: str = "") -> list[dict[str, object]]:
    lines: list[dict[str, object]] = client.get(f"/api/v1/usage{query}").json()["data"]
    return lines


def fold(world: World) -> int:
    with world.database.begin() as session:
        return usage.fold(session, limit=1000)


def timed(index: int, seconds: float) -> Outcome:
    return replace(success(index), cached_tokens=1, device_seconds=seconds)


def test_outcomes_are_counted_as_they_are_written_and_stay_the_same_when_folded(
    client: TestClient, world: World
) -> None:
    # Given
    world.start_job(3)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [timed(0, 0.5), failure(1)])
    world.write(lease, [timed(2, 0.25)])
    # When
    before = used(client)
    assert fold(world) == 2
    # Then
    assert used(client) == before
    assert [(line["num_requests"], line["num_failed"], line["prompt_tokens"]) for line in before] == [(3, 1, 6)]
    assert [(line["cached_tokens"], line["completion_tokens"], line["cost"]) for line in before] == [(2, 4, 0.75)]
    assert fold(world) == 0


def test_entries_from_which_rates_are_read_are_not_folded_yet(client: TestClient, world: World) -> None:
    # Given
    world.start_job(1)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0)])
    # When
    reconciler.fold_usage(world.services)
    # Then
    assert num_entries(world) == 1
    # When they are old
    with world.database.begin() as session:
        session.execute(text("UPDATE usage_entries SET at = now() - interval '1 hour'"))
    reconciler.fold_usage(world.services)
    # Then
    assert num_entries(world) == 0
    assert [line["num_requests"] for line in used(client)] == [1]


def num_entries(world: World) -> int:
    with world.database.begin() as session:
        return int(session.execute(text("SELECT count(*) FROM usage_entries")).scalar_one())


def test_an_outcome_that_is_there_already_does_not_count_again(client: TestClient, world: World) -> None:
    # Given a worker that wrote, lost its lease, and another that writes the same rows and one more
    world.start_job(3)
    first = world.claim("first", lease_seconds=0.001)
    assert first is not None
    world.write(first, [success(0), success(1)])
    fold(world)
    with world.database.begin() as session:
        session.execute(text("UPDATE chunks SET state = 'waiting', owner = NULL"))
    second = world.claim("second")
    assert second is not None
    # When
    world.write(second, [success(0), success(1), success(2)])
    with pytest.raises(LeaseLost):
        world.write(first, [success(2)])
    # Then
    assert [line["num_requests"] for line in used(client)] == [3]


def test_usage_is_grouped_as_wanted_and_outlives_its_job(client: TestClient, world: World) -> None:
    # Given
    job = world.start_job(1)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0)])
    # When
    with world.database.begin() as session:
        session.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job.id})
    # Then
    line = used(client, "?group_by=tenant&group_by=model&all_tenants=true")[0]
    assert (line["tenant"], line["model"], line["day"], line["key"]) == ("default", MODEL, None, None)
    assert used(client, "?model=other") == []
    assert used(client, "?last_day=2001-01-01") == []
    assert json.loads(client.get("/api/v1/usage?group_by=weather").text)["error"]["code"] == "invalid_request"


def test_what_a_stream_had_used_when_its_reader_left_is_accounted(
    client: TestClient, world: World, tmp_path: Path
) -> None:
    # Given a stream that the engine has, and whose end is an hour away
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "one two three"}], "stream": True})
    request = NewOnlineRequest(endpoint=CHAT_ENDPOINT, model=MODEL, body=body, expires_after=timedelta(minutes=5))
    with world.database.begin() as session:
        job = jobs.create_online(session, request)
    with ExitStack() as stack:
        node = Node(world, stack, f"ipc://{tmp_path}/engine.sock")
        node.start_engine(delay=3600)
        ended: list[ChunkRun] = []
        node.runner(lease_seconds=1.0).serve_online(ended.extend)
        until(lambda: (hello := probe(node.endpoint)) is not None and hello.stats.num_running == 1)
        # When
        with world.database.begin() as session:
            jobs.stop(session, job, JobState.CANCELLED)
        until(lambda: ended)
    # Then
    (line,) = used(client)
    names = ("num_requests", "num_failed", "prompt_tokens", "completion_tokens")
    assert [line[name] for name in names] == [1, 0, 3, 0]


def test_work_that_was_lost_and_ran_again_is_accounted_once(client: TestClient, world: World, tmp_path: Path) -> None:
    # Given requests that an engine has, whose prompts have two words each
    world.start_job(3)
    with ExitStack() as stack:
        node = Node(world, stack, f"ipc://{tmp_path}/engine.sock")
        engine = node.start_engine(delay=3600)

        def begun() -> InBackground:
            running = InBackground(node.runner(engine_wait_seconds=1.0))
            until(lambda: (hello := probe(node.endpoint)) is not None and hello.stats.num_running == 3)
            return running

        # When their worker is drained, and then the engine of the next one dies
        drained = begun()
        world.stopping.set()
        drained.result()
        world.stopping.clear()
        until(lambda: (hello := probe(node.endpoint)) is not None and hello.stats.num_running == 0)
        crashed = begun()
        engine.kill()
        engine.wait()
        node.start_engine()
        crashed.result()
        assert used(client) == []
        # And a third runs them to their end
        node.runner().run_batch()
    # Then
    (line,) = used(client)
    assert [line[name] for name in ("num_requests", "prompt_tokens", "completion_tokens")] == [3, 6, 3]
