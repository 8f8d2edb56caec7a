from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from core.openai.responses.events import Event, EventWriter
from core.openai.responses.request import parse_response_request
from core.openai.responses.response import Beginning, answered

ECHO = parse_response_request(b'{"model": "m", "input": "hello"}').echo
BEGINNING = Beginning("resp_1", 1, ECHO)
OFFICIAL: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def ended(
    text: str, calls: tuple[dict[str, Any], ...] = (), logprobs: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "tool_calls": list(calls)}
    choice = {"message": message, "finish_reason": "stop", "logprobs": logprobs and {"content": logprobs}}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    body = TypeAdapter(dict).dump_json({"choices": [choice], "usage": usage}).decode()
    return answered(BEGINNING, 200, body, 2)


def all_events(text: str, *ends: int, starting_after: int | None = None) -> list[Event]:
    """Of an answer that was seen growing to each of these lengths."""
    writer = EventWriter(BEGINNING, starting_after)
    events = writer.begin()
    for end in sorted(ends):
        events += writer.grow(text[:end])
    assert writer.continues(text)
    return [*events, *writer.end(ended(text))]


def test_a_text_is_told_in_the_order_of_openai() -> None:
    # When
    events = all_events("abcdef", 3, 5)
    # Then
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))


@given(st.text(max_size=40), st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)), st.integers(0, 30))
def test_however_an_answer_grew_the_rest_behind_a_number_is_the_same(
    text: str, ends: list[int], others: list[int], number: int
) -> None:
    # When
    first = all_events(text, *ends)
    again = all_events(text, *others, starting_after=number)
    # Then
    assert [event for event in first if event["sequence_number"] > number] == again
    assert "".join(event["delta"] for event in first if event["type"].endswith("text.delta")) == text


def test_the_official_client_knows_every_event() -> None:
    # Given
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    writer = EventWriter(BEGINNING)
    # When
    events = [*writer.begin(), *writer.end(ended("so", (call,))), writer.fail("stream_interrupted", "…")]
    # Then
    kinds = [type(OFFICIAL.validate_python(event)).__name__ for event in events]
    assert "ResponseFunctionCallArgumentsDoneEvent" in kinds
    assert kinds[-1] == "ResponseErrorEvent"


def token(data: bytes) -> dict[str, Any]:
    return {"token": data.decode(errors="replace"), "logprob": -1.0, "bytes": list(data), "top_logprobs": []}


def events_of_tokens(tokens: list[dict[str, Any]], text: str, ends: list[int]) -> list[Event]:
    """Of an answer whose text and log-probabilities were seen growing, a token at a time or several."""
    writer = EventWriter(BEGINNING)
    events = writer.begin()
    known = 0
    for end in sorted(ends):
        data = b"".join(bytes(one["bytes"]) for one in tokens[:end])
        so_far = data.decode(errors="ignore")  # half a character is not told
        assert text.startswith(so_far)
        events += writer.grow(so_far, tokens[known:end])
        known = max(known, end)
    return [*events, *writer.end(ended(text, logprobs=tokens))]


@given(st.text(max_size=30), st.lists(st.integers(1, 5), max_size=40), st.lists(st.integers(0, 40), max_size=10))
def test_a_delta_has_the_log_probabilities_of_its_tokens_however_they_came(
    text: str, lengths: list[int], ends: list[int]
) -> None:
    # Given tokens of any number of bytes, and an end token behind them
    data, tokens = text.encode(), list[dict[str, Any]]()
    for length in lengths:
        tokens.append(token(data[:length]))
        data = data[length:]
    tokens = [one for one in (*tokens, token(data)) if one["bytes"]]
    # When
    events = events_of_tokens(tokens, text, ends)
    # Then
    assert events == events_of_tokens(tokens, text, [])
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [one for delta in deltas for one in delta["logprobs"]] == tokens
