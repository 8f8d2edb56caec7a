"""Webhooks over the real servers: what is announced with the end of a job, how it arrives, and where it never goes."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from openai import OpenAI
from openai.types.webhooks import WebhookEndpointWithSecret
from sqlalchemy import text

from core.job import JobState
from core.webhooks.retries import MAX_ATTEMPTS
from db import jobs
from tasks.services import Services
from tasks.upkeep.finalizing import finalize
from tasks.upkeep.intake import validate
from tasks.upkeep.webhooks import deliver_due
from tests.polling import DEADLINE_SECONDS, until
from tests.serving import serving
from tests.world import World, changed, success

EVENTS = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]


@dataclass
class Receiver:
    """A server of a user: what it got, and the status that it answers with."""

    url: str = ""
    status: int = 200
    location: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    seen = Receiver()
    seen.may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            assert seen.may_answer.wait(DEADLINE_SECONDS)
            self.send_response(seen.status)
            if seen.location:
                self.send_header("Location", seen.location)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        seen.url = f"http://127.0.0.1:{server.server_port}/hook?team=a"
        yield seen
        seen.may_answer.set()
        server.shutdown()
        thread.join()


def allowing(world: World, networks: str) -> Services:
    return replace(world.services, settings=changed(world.services.settings, webhook_networks=networks))


@pytest.fixture
def world(world: World) -> World:
    """As whoever runs Millrace allows it to call itself."""
    world.services = allowing(world, "127.0.0.0/8")
    return world


@pytest.fixture
def official(world: World) -> Iterator[OpenAI]:
    with (
        serving(world.services.settings) as url,
        OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


def subscribe(official: OpenAI, receiver: Receiver, events: list[str] = EVENTS) -> WebhookEndpointWithSecret:
    return official.webhooks.create(name="nightly", url=receiver.url, event_types=events)  # type: ignore[arg-type]


def complete(world: World) -> str:
    job = world.start_job(3)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(index) for index in range(3)])
    finalize(world.services, job.public_id)
    return job.public_id


def fail(world: World) -> str:
    job = world.submit(b"not json")
    assert not validate(world.services, job.public_id)
    return job.public_id


def stop(world: World, ending: JobState) -> str:
    job = world.start_job(3)
    with world.database.begin() as session:
        jobs.stop(session, job, ending)
    finalize(world.services, job.public_id)
    return job.public_id


def rows(world: World) -> list[tuple[object, ...]]:
    with world.database.begin() as session:
        query = "SELECT state, num_attempts, last_status FROM webhook_deliveries ORDER BY id"
        return [tuple(row) for row in session.execute(text(query))]


def make_due(world: World) -> None:
    with world.database.begin() as session:
        session.execute(text("UPDATE webhook_deliveries SET next_at = now()"))


@pytest.mark.parametrize(
    ("end", "event_type"),
    [
        (complete, "batch.completed"),
        (fail, "batch.failed"),
        (lambda world: stop(world, JobState.EXPIRED), "batch.expired"),
        (lambda world: stop(world, JobState.CANCELLED), "batch.cancelled"),
    ],
    ids=EVENTS,
)
def test_the_end_of_a_batch_arrives_signed(
    world: World, official: OpenAI, receiver: Receiver, end: Callable[[World], str], event_type: str
) -> None:
    # Given
    endpoint = subscribe(official, receiver)
    # When
    batch_id = end(world)
    assert deliver_due(world.services) == 1
    # Then
    ((headers, body),) = receiver.got
    event = official.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
    assert event.type == event_type
    assert (event.object, event.data.model_dump()) == ("event", {"id": batch_id})
    assert rows(world) == [("delivered", 1, 200)]
    assert deliver_due(world.services) == 0


def test_only_those_hear_of_it_who_asked(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given
    subscribe(official, receiver, ["batch.failed"])
    with world.database.begin() as session:
        session.execute(
            text(
                "INSERT INTO webhook_endpoints (id, tenant, name, url, event_types, secret)"
                " SELECT 'other', 'other', name, url, ARRAY['batch.completed'], secret FROM webhook_endpoints"
            )
        )
    # When
    complete(world)
    # Then
    assert rows(world) == []


def test_an_end_that_is_not_committed_is_not_announced(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given a finalizer that finds its job cancelled at the last moment
    subscribe(official, receiver)
    job = world.start_job(3)
    with world.database.begin() as session:
        session.execute(text("UPDATE chunks SET state = 'done'"))
        session.execute(
            text(
                "CREATE FUNCTION cancel_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " UPDATE jobs SET state = 'cancelling', ending = 'cancelled'; RETURN NULL; END $$"
            )
        )
        session.execute(
            text(
                "CREATE TRIGGER late AFTER UPDATE OF num_completed ON jobs"
                " FOR EACH STATEMENT EXECUTE FUNCTION cancel_it()"
            )
        )
    # When
    finalize(world.services, job.public_id)
    # Then
    assert world.job(job.public_id).state == JobState.CANCELLING
    assert rows(world) == []


def test_what_did_not_arrive_is_tried_again_under_the_same_id(
    world: World, official: OpenAI, receiver: Receiver
) -> None:
    # Given
    subscribe(official, receiver)
    receiver.status = 500
    complete(world)
    # When
    deliver_due(world.services)
    # Then it waits for its time
    assert rows(world) == [("pending", 1, 500)]
    assert deliver_due(world.services) == 0
    # When
    receiver.status = 204
    make_due(world)
    deliver_due(world.services)
    # Then
    assert rows(world) == [("delivered", 2, 204)]
    first, second = receiver.got
    assert first[0]["webhook-id"] == second[0]["webhook-id"]
    assert first[1] == second[1]


@pytest.mark.parametrize(("status", "attempts_before"), [(500, MAX_ATTEMPTS - 1), (410, 0)])
def test_a_message_that_nobody_wants_is_given_up(
    world: World, official: OpenAI, receiver: Receiver, status: int, attempts_before: int
) -> None:
    # Given
    endpoint = subscribe(official, receiver)
    receiver.status = status
    complete(world)
    with world.database.begin() as session:
        session.execute(text("UPDATE webhook_deliveries SET num_attempts = :num"), {"num": attempts_before})
    # When
    deliver_due(world.services)
    make_due(world)
    # Then
    assert rows(world) == [("dead", attempts_before + 1, status)]
    assert deliver_due(world.services) == 0
    shown = official.get(f"/webhook_endpoints/{endpoint.id}/deliveries", cast_to=object)
    assert isinstance(shown, dict)
    assert shown["data"][0]["last_error"] == f"expected a status of 2xx, got {status}"


def test_two_deliverers_at_once_send_each_message_once(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given
    subscribe(official, receiver)
    for _ in range(6):
        fail(world)
    # When
    with ThreadPoolExecutor(4) as pool:
        num_tried = sum(pool.map(lambda _: deliver_due(world.services), range(4)))
    while deliver_due(world.services):
        num_tried += 4
    # Then
    ids = [headers["webhook-id"] for headers, _ in receiver.got]
    assert len(ids) == len(set(ids)) == 6
    assert {row[0] for row in rows(world)} == {"delivered"}


def test_a_deliverer_that_died_delays_its_message(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given a message that was taken and never settled
    subscribe(official, receiver)
    complete(world)
    with world.database.begin() as session:
        session.execute(text("UPDATE webhook_deliveries SET num_attempts = 1, next_at = now() + interval '1 minute'"))
    assert deliver_due(world.services) == 0
    # When
    make_due(world)
    deliver_due(world.services)
    # Then
    assert rows(world) == [("delivered", 2, 200)]


def test_a_redirect_is_not_followed(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given
    subscribe(official, receiver)
    receiver.status, receiver.location = 307, receiver.url
    complete(world)
    # When
    deliver_due(world.services)
    # Then
    assert len(receiver.got) == 1
    assert rows(world) == [("pending", 1, 307)]


def test_a_name_that_leads_to_this_machine_gets_nothing(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given an endpoint that was made while the network was allowed
    subscribe(official, receiver)
    complete(world)
    world.services = allowing(world, "")
    for url in (receiver.url, receiver.url.replace("http://127.0.0.1", "https://localhost")):
        with world.database.begin() as session:
            session.execute(text("UPDATE webhook_endpoints SET url = :url"), {"url": url})
        make_due(world)
        # When
        deliver_due(world.services)
    # Then
    assert receiver.got == []
    assert rows(world) == [("pending", 2, None)]
    with world.database.begin() as session:
        error = session.execute(text("SELECT last_error FROM webhook_deliveries")).scalar_one()
    assert "webhooks may not be sent" in error


def test_endpoints_are_made_shown_changed_and_removed(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given
    made = subscribe(official, receiver)
    # When
    shown = official.webhooks.retrieve(made.id)
    renamed = official.webhooks.update(made.id, name="daily", event_types=["batch.failed"])
    # Then
    assert made.signing_secret.startswith("whsec_")
    assert "signing_secret" not in shown.model_dump()
    assert (renamed.name, renamed.event_types, renamed.url) == ("daily", ["batch.failed"], receiver.url)
    assert [endpoint.id for endpoint in official.webhooks.list()] == [made.id]
    assert "batch.completed" in official.webhooks.event_types.list().data
    # When
    assert official.webhooks.delete(made.id).deleted
    # Then
    with pytest.raises(openai.NotFoundError):
        official.webhooks.retrieve(made.id)


def test_endpoints_are_listed_in_pages(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given
    ids = [subscribe(official, receiver).id for _ in range(5)]
    # When / Then
    assert [endpoint.id for endpoint in official.webhooks.list(limit=2)] == ids[::-1]


def test_a_new_secret_replaces_the_old_one_at_once_or_after_a_day(
    world: World, official: OpenAI, receiver: Receiver
) -> None:
    # Given
    first = subscribe(official, receiver)
    second = official.webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True)
    complete(world)
    # When
    deliver_due(world.services)
    # Then
    headers, body = receiver.got[-1]
    for secret in (first.signing_secret, second.signing_secret):
        official.webhooks.verify_signature(body, headers, secret=secret)
    # When
    third = official.webhooks.rotate_secret(first.id)
    fail(world)
    deliver_due(world.services)
    # Then
    headers, body = receiver.got[-1]
    official.webhooks.verify_signature(body, headers, secret=third.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        official.webhooks.verify_signature(body, headers, secret=second.signing_secret)


def test_a_sample_is_sent_at_once(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given
    endpoint = subscribe(official, receiver)
    receiver.status = 202
    # When
    result = official.webhooks.test(endpoint.id, event_type="response.completed")
    # Then
    assert result.status_code == 202
    ((headers, body),) = receiver.got
    event = official.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
    assert event.type == "response.completed"


def test_a_url_inside_is_refused_when_the_endpoint_is_made(official: OpenAI) -> None:
    for url in ("https://192.168.0.1/", "https://169.254.169.254/", "nonsense"):
        with pytest.raises(openai.BadRequestError) as refused:
            official.webhooks.create(name="a", url=url, event_types=["batch.completed"])
        assert refused.value.param == "url"


def test_messages_of_a_removed_endpoint_go_with_it(world: World, official: OpenAI, receiver: Receiver) -> None:
    # Given
    endpoint = subscribe(official, receiver)
    complete(world)
    # When
    official.webhooks.delete(endpoint.id)
    # Then
    assert rows(world) == []
    assert deliver_due(world.services) == 0


def test_a_server_that_keeps_tests_waiting_holds_nobody_else_up(official: OpenAI, receiver: Receiver) -> None:
    # Given more tests at once than the API has threads
    endpoint = subscribe(official, receiver)
    receiver.may_answer.clear()
    with ThreadPoolExecutor(50) as threads:
        tests = [
            threads.submit(official.webhooks.test, endpoint.id, event_type="response.completed") for _ in range(50)
        ]
        until(lambda: len(receiver.got) >= 2)
        # When
        found = official.with_options(timeout=DEADLINE_SECONDS).webhooks.retrieve(endpoint.id)
        num_at_once = len(receiver.got)
        receiver.may_answer.set()
    # Then
    assert found.id == endpoint.id
    assert num_at_once == 2
    assert all(test.result().success for test in tests)
