"""A limit of jobs at once holds for calls that come at the same moment, whatever they make."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from core.access import Limits
from core.openai.completion import CHAT_ENDPOINT
from tests.integration.access.keys import bearer, make_key
from tests.integration.access.test_admission import CHAT, answering, batch_body, client_of
from tests.polling import until
from tests.world import MODEL, World, success


@pytest.mark.parametrize("kind", ["batch", "inference", "warming"])
def test_of_two_jobs_at_once_one_takes_the_last_place(world: World, kind: str) -> None:
    # Given
    key = bearer(make_key(world, limits=Limits(concurrent_jobs=1)))
    prompts = {"prompts": ["one"]} if kind == "inference" else {}
    body: dict[str, object] = {"kind": kind, "model": MODEL, **prompts}
    path = "/api/v1/jobs"
    if kind == "batch":
        path, body = "/v1/batches", batch_body(world)
    with client_of(world) as client, ThreadPoolExecutor(2) as threads:
        # When neither can be written before both have come
        with world.database.begin() as session:
            session.execute(text("LOCK TABLE jobs IN SHARE MODE"))
            calls = [threads.submit(client.post, path, json=body, headers=key) for _ in range(2)]
            until(lambda: session.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar() == 2)
        statuses = sorted(call.result().status_code for call in calls)
    # Then
    assert statuses == [200 if kind == "batch" else 201, 429]


@pytest.mark.parametrize("path", [CHAT_ENDPOINT, "/v1/responses"])
def test_of_two_questions_at_once_one_takes_the_last_place(world: World, path: str) -> None:
    # Given
    key = bearer(make_key(world, limits=Limits(concurrent_jobs=1)))
    body: dict[str, object] = CHAT if path == CHAT_ENDPOINT else {"model": MODEL, "input": "hi", "background": True}
    with client_of(world) as client, ThreadPoolExecutor(2) as threads:
        # When neither can be written before both have come
        with world.database.begin() as session:
            session.execute(text("LOCK TABLE jobs IN SHARE MODE"))
            calls = [threads.submit(client.post, path, json=body, headers=key) for _ in range(2)]
            until(lambda: session.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar() == 2)
        until(lambda: any(call.done() for call in calls))  # the one that is refused
        with answering(world, success(0)):
            statuses = sorted(call.result().status_code for call in calls)
    # Then
    assert statuses == [200, 429]
