"""`/v1/responses` with the official client, over a worker and a real engine process."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from api.openai.responses import routes
from core.job import JobState
from core.openai.responses.request import ResponseRequest, parse_response_request
from core.protocol import Generate
from db import responses
from engine.null import answer_text
from tests.answering import Answering, answer
from tests.polling import until
from tests.world import MODEL, World

HELLO = [{"role": "user", "content": "hello"}]


def expected(*messages: dict[str, str]) -> str:
    return answer_text(Generate("id", MODEL, messages=list(messages)))


@pytest.fixture
def slow(world: World, tmp_path: Path) -> Iterator[Answering]:
    """Its model takes an hour."""
    with answer(world, f"ipc://{tmp_path}/engine.sock", {MODEL: "null:3600"}) as started:
        yield started


def ended(answering: Answering, response_id: str) -> Response:
    until(lambda: answering.client.responses.retrieve(response_id).status not in ("queued", "in_progress"))
    return answering.client.responses.retrieve(response_id)


def test_a_response_is_an_answer_that_can_be_read_again(answering: Answering) -> None:
    # When
    made = answering.client.responses.create(
        model=MODEL, input="hello", instructions="be brief", metadata={"from": "a test"}, temperature=0
    )
    # Then
    assert made.output_text == expected({"role": "system", "content": "be brief"}, *HELLO)
    assert (made.status, made.model, made.metadata, made.temperature) == ("completed", MODEL, {"from": "a test"}, 0)
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens == 4
    assert answering.client.responses.retrieve(made.id) == made


def test_a_conversation_goes_on_where_it_was(answering: Answering) -> None:
    # Given
    client = answering.client
    first = client.responses.create(model=MODEL, input="hello")
    second = client.responses.create(model=MODEL, input="and?", previous_response_id=first.id)
    # When
    third = client.responses.create(
        model=MODEL, input=[{"role": "user", "content": "so?"}], previous_response_id=second.id
    )
    # Then
    said: list[dict[str, str]] = [
        *HELLO,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "so?"},
    ]
    assert second.output_text == expected(*said[:3])
    assert third.output_text == expected(*said)
    assert third.previous_response_id == second.id
    # When one of them is gone
    client.responses.delete(first.id)
    # Then
    with pytest.raises(openai.NotFoundError, match=first.id) as broken:
        client.responses.create(model=MODEL, input="?", previous_response_id=third.id)
    assert broken.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_in_the_background_it_comes_back_at_once_and_ends_by_itself(answering: Answering) -> None:
    # When
    made = answering.client.responses.create(model=MODEL, input="hello", background=True)
    # Then
    assert (made.status, made.background, made.output) == ("queued", True, [])
    assert ended(answering, made.id).output_text == expected(*HELLO)


def test_one_in_the_background_can_be_cancelled_twice(slow: Answering) -> None:
    # Given
    made = slow.client.responses.create(model=MODEL, input="hello", background=True)
    until(lambda: slow.client.responses.retrieve(made.id).status == "in_progress")
    with pytest.raises(openai.BadRequestError, match="answered"):
        slow.client.responses.create(model=MODEL, input="and?", previous_response_id=made.id)
    # When
    stopped = [slow.client.responses.cancel(made.id).status for _ in range(2)]
    # Then
    assert stopped == ["cancelled", "cancelled"]
    with slow.world.database.begin() as session:
        job = responses.find(session, made.id, tenant="default").job
    until(lambda: slow.world.job(job.public_id).state == JobState.CANCELLED)
    assert slow.client.responses.retrieve(made.id).status == "cancelled"


def test_one_that_is_waited_for_is_not_cancelled_by_name(answering: Answering) -> None:
    made = answering.client.responses.create(model=MODEL, input="hello")
    with pytest.raises(openai.BadRequestError, match="background=true"):
        answering.client.responses.cancel(made.id)


def test_what_is_not_stored_is_not_there_afterwards(answering: Answering) -> None:
    # When
    made = answering.client.responses.create(model=MODEL, input="hello", store=False)
    # Then
    assert made.output_text == expected(*HELLO)
    with pytest.raises(openai.NotFoundError, match="no response"):
        answering.client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        answering.client.responses.create(model=MODEL, input="and?", previous_response_id=made.id)


def test_the_input_is_listed_in_pages(answering: Answering) -> None:
    # Given
    turns: Any = [{"role": "user", "content": f"turn {number}"} for number in range(5)]
    made = answering.client.responses.create(model=MODEL, input=turns)
    # When
    first = answering.client.responses.input_items.list(made.id, limit=2)
    forward = answering.client.responses.input_items.list(made.id, order="asc")

    # Then
    def texts(items: Any) -> list[str]:
        return [item.content[0].text for item in items]

    assert texts(first.data) == ["turn 4", "turn 3"]
    assert texts(first) == ["turn 4", "turn 3", "turn 2", "turn 1", "turn 0"]  # the client asks for the other pages
    assert texts(forward) == [f"turn {number}" for number in range(5)]


def test_a_stream_tells_the_answer_in_events_of_the_official_client(answering: Answering) -> None:
    # When
    with answering.client.responses.create(model=MODEL, input="hello", stream=True) as stream:
        events = list(stream)
    # Then
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected(*HELLO)
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == expected(*HELLO)
    assert answering.client.responses.retrieve(events[-1].response.id) == events[-1].response


def test_a_stream_in_the_background_is_read_on_from_any_number(answering: Answering) -> None:
    # Given a client that leaves after the first event
    with answering.client.responses.create(model=MODEL, input="hello", stream=True, background=True) as stream:
        created = next(iter(stream))
    assert created.type == "response.created"
    response_id = created.response.id
    # When
    with answering.client.responses.retrieve(response_id, stream=True) as stream:
        everything = list(stream)
    answering.world.services.redis.flushdb()  # the relay forgets
    rests = []
    for number in range(len(everything)):
        with answering.client.responses.retrieve(response_id, stream=True, starting_after=number) as stream:
            rests.append(list(stream))
    # Then
    assert everything[0] == created
    assert rests == [everything[number + 1 :] for number in range(len(everything))]


def test_a_client_that_leaves_a_stream_ends_what_only_it_waited_for(slow: Answering) -> None:
    # Given
    with slow.client.responses.create(model=MODEL, input="hello", stream=True) as stream:
        created = next(iter(stream))
    # Then
    assert created.type == "response.created"
    until(lambda: slow.client.responses.retrieve(created.response.id).status == "cancelled")


def test_a_stream_of_a_response_that_is_deleted_ends_in_an_error_event(slow: Answering) -> None:
    # Given
    with slow.client.responses.create(model=MODEL, input="hello", stream=True, background=True) as stream:
        events = iter(stream)
        created = next(events)
        assert created.type == "response.created"
        until(lambda: slow.client.responses.retrieve(created.response.id).status == "in_progress")
        # When
        slow.client.responses.delete(created.response.id)
        *_, last = events
    # Then
    assert last.type == "error"
    assert (last.code, created.response.id in last.message) == ("not_found", True)


def test_bad_calls_are_refused_in_the_shape_of_openai(answering: Answering) -> None:
    create = answering.client.responses.create
    with pytest.raises(openai.NotFoundError, match="nobody") as missing:
        create(model="nobody", input="hello")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        create(model=MODEL, input="hello", temperature=7)
    assert wrong.value.param == "temperature"
    whole = create(model=MODEL, input="hello")
    with pytest.raises(openai.BadRequestError, match="stream=true"):
        answering.client.responses.retrieve(whole.id, stream=True)


def test_a_body_is_not_parsed_where_everybody_is_served(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    threads: list[str] = []

    def noted(body: bytes) -> ResponseRequest:
        threads.append(threading.current_thread().name)
        return parse_response_request(body)

    monkeypatch.setattr(routes, "parse_response_request", noted)
    # When
    answering.client.responses.create(model=MODEL, input="hello")
    # Then
    assert len(threads) == 1
    assert threads != ["api"]


def test_the_same_call_again_is_the_same_response(answering: Answering) -> None:
    # Given
    headers = {"Idempotency-Key": "once"}
    # When
    first, second = [
        answering.client.responses.create(model=MODEL, input="hello", extra_headers=headers) for _ in range(2)
    ]
    # Then
    assert first == second
