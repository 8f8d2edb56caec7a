"""What the API lets in: limits, full queues, failing models and priorities, as a client sees them. Where an answer
matters, the test writes it as a worker would."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.access.admission import retry_seconds
from api.app import create_api
from core.access import Limits, Scope
from core.job import ServiceClass
from core.openai.completion import CHAT_ENDPOINT, TEXT_ENDPOINT
from db import chunks, jobs
from db.access import keys
from db.access.load import Rate
from db.chunks import Outcome
from db.jobs import NewOnlineRequest
from tasks.breaker.circuit import Breaker, Circuit
from tasks.relay import Piece
from tests.engine_models import save_tiny_model
from tests.integration.access.keys import bearer, make_key
from tests.polling import until
from tests.world import MODEL, World, batch_file, changed, success

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
WAITING = NewOnlineRequest(endpoint=CHAT_ENDPOINT, model=MODEL, body="{}", expires_after=timedelta(minutes=5))
FAILURE = Outcome(0, 500, '{"error":{"code":"model_failure","message":"out of order"}}')


@contextmanager
def client_of(world: World, **settings: object) -> Iterator[TestClient]:
    app = create_api(changed(world.services.settings, auth="required", **settings))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@contextmanager
def answering(world: World, outcome: Outcome, first: str = "") -> Iterator[None]:
    """Every question gets this answer, as long as the block lasts. first: told before."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(0.01):
            answer_one(world, outcome, first)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        is_over.set()
        worker.join()


def answer_one(world: World, outcome: Outcome, first: str = "") -> None:
    with world.database.begin() as session:
        lease = chunks.claim(
            session, owner="worker", service_class=ServiceClass.ONLINE.value, models=[MODEL], lease_seconds=60.0
        )
    if lease is not None:
        if first:
            world.services.relay.publish(lease.job_public_id, Piece(1, 0, 0, 0, first, 1))
        world.write(lease, [outcome])
        world.services.relay.announce(lease.job_public_id)


def batch_body(world: World, **values: object) -> dict[str, object]:
    return {"input_file_id": world.upload(batch_file(range(2))), "endpoint": CHAT_ENDPOINT, **values}


def test_a_limited_key_is_told_what_is_left_and_then_refused(world: World) -> None:
    # Given
    key = bearer(make_key(world, limits=Limits(requests_per_minute=2)))
    with client_of(world) as client, answering(world, success(0)):
        # When
        first, second, third = (client.post(CHAT_ENDPOINT, json=CHAT, headers=key) for _ in range(3))
        unlimited = client.post(CHAT_ENDPOINT, json=CHAT, headers=bearer(make_key(world)))
    # Then
    assert [one.status_code for one in (first, second, third, unlimited)] == [200, 200, 429, 200]
    assert [one.headers["x-ratelimit-remaining-requests"] for one in (first, second, third)] == ["1", "0", "0"]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert third.json()["error"]["type"] == "rate_limit_error"
    assert 0 < int(third.headers["retry-after"]) <= 60
    assert "x-ratelimit-limit-requests" not in unlimited.headers


def test_tokens_are_taken_by_an_estimate_and_corrected_by_the_answer(world: World) -> None:
    # Given: answers of 3 tokens in, 2 out, to questions that ask for 50
    key = bearer(make_key(world, limits=Limits(tokens_per_minute=100)))
    with client_of(world) as client, answering(world, success(0)):
        # When
        first = client.post(CHAT_ENDPOINT, json=CHAT, headers=key)
        second = client.post(CHAT_ENDPOINT, json=CHAT, headers=key)
        greedy = client.post(CHAT_ENDPOINT, json={**CHAT, "max_tokens": 100}, headers=key)
    # Then
    assert [one.status_code for one in (first, second, greedy)] == [200, 200, 429]
    left = [int(one.headers["x-ratelimit-remaining-tokens"]) for one in (first, second)]
    assert left[0] < 50
    assert left[0] - left[1] == 5


def test_the_answers_to_all_prompts_of_a_request_are_taken(world: World) -> None:
    # Given
    key = bearer(make_key(world, limits=Limits(tokens_per_minute=100)))
    body = {"model": MODEL, "prompt": ["one", "two", "three"], "max_tokens": 40}
    with client_of(world, online_timeout_seconds=0.1) as client:
        # When
        refused = client.post(TEXT_ENDPOINT, json=body, headers=key)
    # Then
    assert refused.status_code == 429


@pytest.mark.parametrize("path", [CHAT_ENDPOINT, "/v1/responses"])
def test_a_request_too_many_is_refused_before_its_prompt_is_counted(world: World, tmp_path: Path, path: str) -> None:
    # Given a model whose prompts are counted here
    models = f"{MODEL}={save_tiny_model(tmp_path)}"
    key = bearer(make_key(world, limits=Limits(requests_per_minute=1)))
    with client_of(world, models=models) as client:
        # When
        statuses = [client.post(path, json=too_long(path), headers=key).status_code for _ in range(2)]
    # Then
    assert statuses == [400, 429]


@pytest.mark.parametrize("path", [CHAT_ENDPOINT, "/v1/responses"])
def test_a_full_queue_and_a_failing_model_refuse_before_a_prompt_is_counted(
    world: World, tmp_path: Path, path: str
) -> None:
    # Given a model whose prompts are counted here, for which somebody waits
    models = f"{MODEL}={save_tiny_model(tmp_path)}"
    key = bearer(make_key(world))
    with world.database.begin() as session:
        jobs.create_online(session, WAITING)
    with client_of(world, models=models, max_waiting_requests=1) as client:
        full = client.post(path, json=too_long(path), headers=key)
    # When: nobody waits, but it fails
    with world.database.begin() as session:
        session.execute(text("DELETE FROM chunks"))
    with client_of(world, models=models, breaker_failures=1) as client:
        Breaker.of(changed(world.services.settings, breaker_failures=1), world.services.redis).failed(MODEL)
        failing = client.post(path, json=too_long(path), headers=key)
    # Then
    assert (full.status_code, full.json()["error"]["code"]) == (429, "overloaded")
    assert (failing.status_code, failing.json()["error"]["code"]) == (503, "model_unavailable")


def test_a_repeated_call_finds_its_job_however_full_its_queue_is(world: World, tmp_path: Path) -> None:
    # Given a call whose client did not wait for the answer
    models = f"{MODEL}={save_tiny_model(tmp_path)}"
    headers = {**bearer(make_key(world)), "Idempotency-Key": "once"}
    others = {**headers, "Idempotency-Key": "another"}
    limits = {"models": models, "max_waiting_requests": 1}
    with client_of(world, **limits) as client, answering(world, success(0)):
        client.post(CHAT_ENDPOINT, json=CHAT, headers=headers)
    with world.database.begin() as session:
        jobs.create_online(session, WAITING)
    # When
    with client_of(world, **limits) as client:
        again = client.post(CHAT_ENDPOINT, json=CHAT, headers=headers)
        other = client.post(CHAT_ENDPOINT, json=too_long(CHAT_ENDPOINT), headers=others)
    # Then
    assert (again.status_code, other.status_code) == (200, 429)


def test_a_probe_that_is_refused_by_its_count_leaves_its_place_to_another(world: World, tmp_path: Path) -> None:
    # Given a model that failed a moment ago
    models = f"{MODEL}={save_tiny_model(tmp_path)}"
    key = bearer(make_key(world))
    quick = changed(world.services.settings, breaker_failures=1, breaker_open_seconds=0.001)
    Breaker.of(quick, world.services.redis).failed(MODEL)
    with client_of(world, models=models, breaker_failures=1) as client, answering(world, success(0)):
        # When
        refused = client.post(CHAT_ENDPOINT, json=too_long(CHAT_ENDPOINT), headers=key)
        answered = client.post(CHAT_ENDPOINT, json=CHAT, headers=key)
    # Then
    assert (refused.status_code, answered.status_code) == (400, 200)


def too_long(path: str) -> dict[str, object]:
    prompt = "feeds the wheel " * 1000
    if path == CHAT_ENDPOINT:
        return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
    return {"model": MODEL, "input": prompt}


def test_a_batch_is_a_request_too(world: World) -> None:
    # Given
    key = bearer(make_key(world, limits=Limits(requests_per_minute=1)))
    with client_of(world) as client:
        # When
        statuses = [client.post("/v1/batches", json=batch_body(world), headers=key).status_code for _ in range(2)]
    # Then
    assert statuses == [200, 429]


def test_a_response_in_the_background_is_a_request_and_a_job_of_its_key(world: World) -> None:
    # Given
    key = bearer(make_key(world, limits=Limits(requests_per_minute=5, concurrent_jobs=1)))
    body = {"model": MODEL, "input": "hi", "background": True}
    with client_of(world) as client:
        # When
        first, second = (client.post("/v1/responses", json=body, headers=key) for _ in range(2))
    # Then
    assert (first.status_code, second.status_code) == (200, 429)
    assert first.headers["x-ratelimit-remaining-requests"] == "4"
    with world.database.begin() as session:
        assert session.execute(text("SELECT count(*) FROM jobs WHERE key_id IS NOT NULL")).scalar() == 1


@pytest.mark.parametrize("of", ["key", "tenant"])
def test_so_many_jobs_at_once_and_no_more(world: World, of: str) -> None:
    # Given
    one_job = Limits(concurrent_jobs=1)
    key = bearer(make_key(world, limits=one_job if of == "key" else Limits()))
    if of == "tenant":
        with world.database.begin() as session:
            keys.set_tenant_limits(session, "default", one_job)
    with client_of(world, online_timeout_seconds=0.1) as client:
        # When
        made = client.post("/v1/batches", json=batch_body(world), headers=key)
        batch = client.post("/v1/batches", json=batch_body(world), headers=key)
        question = client.post(CHAT_ENDPOINT, json=CHAT, headers=key)
        # Then
        assert [one.status_code for one in (made, batch, question)] == [200, 429, 429]
        assert "at once" in question.json()["error"]["message"]
        # When: it has ended
        with world.database.begin() as session:
            session.execute(text("UPDATE jobs SET state = 'failed'"))
        # Then
        assert client.post("/v1/batches", json=batch_body(world), headers=key).status_code == 200


def test_a_full_queue_refuses_with_the_time_it_takes(world: World) -> None:
    # Given
    with world.database.begin() as session:
        for _ in range(3):
            jobs.create_online(session, WAITING)
    with client_of(world, max_waiting_requests=3) as client:
        # When
        refused = client.post(CHAT_ENDPOINT, json=CHAT, headers=bearer(make_key(world)))
    # Then
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "overloaded"
    assert "3 requests wait for" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1


def test_the_time_it_takes_comes_from_the_rate_of_the_last_minute() -> None:
    ten, one = Rate(10.0, 0.0, 0.0), Rate(1.0, 0.0, 0.0)
    assert retry_seconds(100, ten) == 10.0
    assert retry_seconds(1, ten) == 1.0
    assert retry_seconds(100_000, one) == 600.0
    assert retry_seconds(100, None) > 0


def test_a_full_queue_and_its_figures_estimate_the_same_wait(world: World) -> None:
    # Given answers a moment ago, and thirty who wait
    with client_of(world) as client, answering(world, success(0)):
        for _ in range(2):
            assert client.post(CHAT_ENDPOINT, json=CHAT, headers=bearer(make_key(world))).status_code == 200
    with world.database.begin() as session:
        session.execute(text("UPDATE usage_entries SET at = now() - interval '10 seconds'"))
        for _ in range(30):
            jobs.create_online(session, WAITING)
    with client_of(world, max_waiting_requests=30) as client:
        # When
        refused = client.post(CHAT_ENDPOINT, json=CHAT, headers=bearer(make_key(world)))
        for scopes in ((Scope.READ,), (Scope.READ, Scope.ADMIN)):
            shown = client.get("/api/v1/queues", headers=bearer(make_key(world, *scopes))).json()["data"]
            (online,) = [queue for queue in shown if queue["service_class"] == "online"]
            # Then: thirty at two in ten seconds, or a little longer ago by now
            assert online["estimated_wait_seconds"] >= int(refused.headers["retry-after"]) - 1 >= 149
            assert 0 < online["rows_per_second"] <= 0.2


def test_a_model_that_keeps_failing_is_left_alone_until_a_probe_succeeds(world: World) -> None:
    # Given
    key = bearer(make_key(world))
    breaker = Breaker.of(world.services.settings, world.services.redis)
    with client_of(world, breaker_failures=2, breaker_open_seconds=3.0) as client:
        # When
        with answering(world, FAILURE):
            failed = [client.post(CHAT_ENDPOINT, json=CHAT, headers=key).status_code for _ in range(2)]
        refused = client.post(CHAT_ENDPOINT, json=CHAT, headers=key)
        # Then
        assert failed == [500, 500]
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_unavailable"
        assert int(refused.headers["retry-after"]) >= 1
        # When: it works again
        with answering(world, success(0)):
            until(lambda: client.post(CHAT_ENDPOINT, json=CHAT, headers=key).status_code == 200)
        # Then
        state = breaker.ask(MODEL)
        assert (state.circuit, state.num_failures) == (Circuit.CLOSED, 0)


@pytest.mark.parametrize("path", [CHAT_ENDPOINT, "/v1/responses"])
def test_a_model_that_fails_in_the_middle_of_a_stream_has_failed(world: World, path: str) -> None:
    # Given
    body = {**CHAT, "stream": True} if path == CHAT_ENDPOINT else {"model": MODEL, "input": "hi", "stream": True}
    with client_of(world) as client, answering(world, FAILURE, first="He"):
        # When
        stream = client.post(path, json=body, headers=bearer(make_key(world)))
    # Then
    assert (stream.status_code, "out of order" in stream.text) == (200, True)
    assert Breaker.of(world.services.settings, world.services.redis).ask(MODEL).num_failures == 1


def test_a_wrong_request_says_nothing_about_the_model(world: World) -> None:
    # Given
    wrong = Outcome(0, 400, '{"error":{"code":"context_length_exceeded","message":"too long"}}')
    with client_of(world, breaker_failures=1) as client, answering(world, wrong):
        # When
        client.post(CHAT_ENDPOINT, json=CHAT, headers=bearer(make_key(world)))
    # Then
    assert Breaker.of(world.services.settings, world.services.redis).ask(MODEL).num_failures == 0


def test_a_key_bounds_the_priority_of_its_batches(world: World) -> None:
    # Given
    key = bearer(make_key(world, max_priority=3))
    with client_of(world) as client:
        # When
        high = client.post("/v1/batches", json=batch_body(world, priority=4), headers=key)
        allowed = client.post("/v1/batches", json=batch_body(world, priority=2), headers=key)
        usual = client.post("/v1/batches", json=batch_body(world), headers=key)
    # Then
    assert [world.job(one.json()["id"]).priority for one in (high, allowed, usual)] == [3, 2, 3]


def test_a_key_bounds_the_priority_of_its_jobs_also_afterwards(world: World) -> None:
    # Given
    key = bearer(make_key(world, max_priority=3))
    job = {"kind": "inference", "model": MODEL, "prompts": ["one"]}
    with client_of(world) as client:
        # When
        high = client.post("/api/v1/jobs", json={**job, "priority": 4}, headers=key)
        usual = client.post("/api/v1/jobs", json=job, headers=key)
        raised = client.patch(f"/api/v1/jobs/{usual.json()['id']}", json={"priority": 9}, headers=key)
    # Then
    assert [one.json()["priority"] for one in (high, usual, raised)] == [3, 3, 3]


def test_a_job_remembers_its_key(world: World) -> None:
    # Given
    key = make_key(world)
    with client_of(world) as client:
        # When
        batch = client.post("/v1/batches", json=batch_body(world), headers=bearer(key))
        body = {"kind": "inference", "model": MODEL, "prompts": ["one"]}
        job = client.post("/api/v1/jobs", json=body, headers=bearer(key))
    # Then
    with world.database.begin() as session:
        (row,) = keys.list_keys(session)
    assert [world.job(one.json()["id"]).key_id for one in (batch, job)] == [row.id, row.id]
