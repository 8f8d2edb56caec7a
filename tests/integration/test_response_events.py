"""The end of a background response is an event, by what became of it."""

import json

import pytest
from openai import OpenAI
from sqlalchemy import text

from core.job import JobState, ServiceClass
from core.openai.completion import CHAT_ENDPOINT
from core.webhooks.events import EventType
from db import chunks, jobs
from db.chunks import Outcome
from tasks.messages import FINALIZE_JOB
from tasks.queues import UPKEEP
from tasks.upkeep.finalizing import finalize
from tests.integration.access.keys import bearer, make_key
from tests.integration.access.test_admission import client_of
from tests.world import MODEL, World

USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


@pytest.fixture
def listened(world: World) -> World:
    """Somebody wants to hear of everything about responses."""
    with world.database.begin() as session:
        session.execute(
            text(
                "INSERT INTO webhook_endpoints (id, tenant, name, url, event_types, secret) VALUES"
                " ('e', 'default', 'n', 'u', :event_types, 's')"
            ),
            {"event_types": [kind.value for kind in EventType if kind.startswith("response.")]},
        )
    return world


def end(world: World, outcome: Outcome | None) -> None:
    with world.database.begin() as session:
        lease = chunks.claim(
            session, owner="w", service_class=ServiceClass.ONLINE.value, models=[MODEL], lease_seconds=60.0
        )
    assert lease is not None
    if outcome is not None:
        world.write(lease, [outcome])
    else:
        with world.database.begin() as session:
            jobs.stop(session, world.job(lease.job_public_id), JobState.CANCELLED)
        with world.database.begin() as session:
            chunks.hand_back(session, lease)
    finalize(world.services, lease.job_public_id)


def answer(finish_reason: str) -> Outcome:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": "a"}}
    return Outcome(0, 200, json.dumps({"id": "c", "created": 1, "choices": [choice], "usage": USAGE}))


def events(world: World) -> list[tuple[str, str]]:
    with world.database.begin() as session:
        payloads = session.scalars(text("SELECT payload FROM webhook_deliveries"))
        found = [json.loads(payload) for payload in payloads]
    return [(event["type"], event["data"]["id"]) for event in found]


@pytest.mark.parametrize(
    ("outcome", "event_type"),
    [
        (answer("stop"), "response.completed"),
        (answer("length"), "response.incomplete"),
        (Outcome(0, 500, json.dumps({"error": {"code": "model_failure", "message": "m"}})), "response.failed"),
        (None, "response.cancelled"),
    ],
    ids=["completed", "incomplete", "failed", "cancelled"],
)
def test_a_background_response_that_ends_is_an_event(
    listened: World, official: OpenAI, outcome: Outcome | None, event_type: str
) -> None:
    # Given
    response = official.responses.create(model=MODEL, input="hi", background=True)
    # When
    end(listened, outcome)
    # Then
    assert events(listened) == [(event_type, response.id)]


def test_one_that_is_deleted_while_it_waits_is_ended_by_a_message(world: World, official: OpenAI) -> None:
    # Given
    response = official.responses.create(model=MODEL, input="hi", background=True)
    # When
    official.responses.delete(response.id)
    # Then
    assert told(world) == [FINALIZE_JOB]


def test_one_that_nobody_waits_for_any_more_before_it_has_begun_is_ended_by_a_message(world: World) -> None:
    # Given a model that nobody runs, and somebody who waits no longer than this
    with client_of(world, online_timeout_seconds=0.05) as client:
        # When
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        client.post(CHAT_ENDPOINT, json=body, headers=bearer(make_key(world)))
    # Then
    assert told(world) == [FINALIZE_JOB]


def told(world: World) -> list[str]:
    """The upkeep worker."""
    return [json.loads(message)["headers"]["task"] for message in world.services.redis.lrange(UPKEEP, 0, -1)]
