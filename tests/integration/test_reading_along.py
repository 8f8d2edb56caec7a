"""Reading along in an answer that somebody else asked for: a key that may only look changes nothing about it."""

from datetime import timedelta

import pytest

from core.access import Scope
from core.job import JobState
from core.openai.completion import CHAT_ENDPOINT
from db import jobs
from db.jobs import NewOnlineRequest
from db.tables import JobRow
from tasks.relay import Piece
from tests.integration.access.keys import bearer, make_key
from tests.integration.access.test_admission import client_of
from tests.integration.test_streaming import BODY
from tests.world import MODEL, World

RESUMABLE = BODY.replace('"stream": true', '"stream": true, "stream_options": {"resume_seconds": 5}')


def asked(world: World, body: str) -> JobRow:
    """Its first word was told."""
    request = NewOnlineRequest(endpoint=CHAT_ENDPOINT, model=MODEL, body=body, expires_after=timedelta(seconds=5))
    with world.database.begin() as session:
        job = jobs.create_online(session, request)
    world.services.relay.publish(job.public_id, Piece(1, 0, 0, 0, "Hello", 1))
    return job


@pytest.mark.parametrize("body", [BODY, RESUMABLE], ids=["usual", "resumable"])
@pytest.mark.parametrize("scope", [Scope.READ, Scope.SUBMIT])
def test_whoever_claims_to_have_text_of_another_run_ends_nothing(world: World, body: str, scope: Scope) -> None:
    # Given
    job = asked(world, body)
    key = make_key(world, Scope.READ, scope)
    with client_of(world) as client:
        # When
        refused = client.get(
            f"{CHAT_ENDPOINT}/chatcmpl-{job.public_id}-0/events", headers={**bearer(key), "Last-Event-ID": "0:5"}
        )
    # Then
    assert refused.json()["error"]["code"] == "stream_interrupted"
    after = world.job(job.public_id)
    assert (after.state, after.ending) == (JobState.IN_PROGRESS, None)
    assert (after.expires_at == job.expires_at) is (scope is Scope.READ), "only who may ask anew prolongs it"


@pytest.mark.parametrize("body", [BODY, RESUMABLE], ids=["usual", "resumable"])
def test_a_reader_who_leaves_takes_nothing_from_others(world: World, body: str) -> None:
    # Given a reader who is cut off before the end
    job = asked(world, body)
    with client_of(world, online_timeout_seconds=0.1) as client:
        # When
        read = client.get(
            f"{CHAT_ENDPOINT}/chatcmpl-{job.public_id}-0/events", headers=bearer(make_key(world, Scope.READ))
        )
    # Then
    assert "no answer within" in read.text
    after = world.job(job.public_id)
    assert (after.state, after.ending, after.expires_at) == (JobState.IN_PROGRESS, None, job.expires_at)
