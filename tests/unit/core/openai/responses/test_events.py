from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from core.openai.answer import tool_calls
from core.openai.message import Call, Message
from core.openai.responses.events import Event, EventWriter
from core.openai.responses.items import Item, growing_items
from core.openai.responses.request import parse_response_request
from core.openai.responses.response import Beginning, answered

ECHO = parse_response_request(b'{"model": "m", "input": "hello"}').echo
BEGINNING = Beginning("resp_1", 1, ECHO)
OFFICIAL: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def ended(
    text: str,
    calls: tuple[dict[str, Any], ...] = (),
    logprobs: list[dict[str, Any]] | None = None,
    finish_reason: str = "stop",
) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "tool_calls": list(calls)}
    choice = {"message": message, "finish_reason": finish_reason, "logprobs": logprobs and {"content": logprobs}}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    body = TypeAdapter(dict).dump_json({"choices": [choice], "usage": usage}).decode()
    return answered(BEGINNING, 200, body, 2)


def grown(text: str, *calls: Call) -> list[Item]:
    return growing_items(BEGINNING.id, "1-0", Message(text, calls))


def all_events(text: str, *ends: int, starting_after: int | None = None) -> list[Event]:
    """Of an answer that was seen growing to each of these lengths."""
    writer = EventWriter(BEGINNING, starting_after)
    events = writer.begin()
    for end in sorted(ends):
        events += writer.grow(grown(text[:end]))
    whole = ended(text)
    assert writer.continues(whole["output"])
    return [*events, *writer.end(whole)]


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
        events += writer.grow(grown(so_far), tokens[known:end])
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


CALLS = (Call("look", '{"at": "the wheel"}'), Call("wait", "{}"))


def events_of_calls(
    text: str, calls: tuple[Call, ...], ends: list[int], starting_after: int | None = None
) -> list[Event]:
    """Of an answer with a text and calls behind it, seen growing to each of these lengths. Cut off within the last."""
    writer = EventWriter(BEGINNING, starting_after)
    events = writer.begin()
    for end in sorted(ends):
        seen, left = list[Call](), end - len(text)
        for call in calls:
            if left > 0:
                seen.append(Call(call.name, call.arguments[: left - 1]))
            left -= len(call.arguments) + 1
        events += writer.grow(grown(text[:end], *seen))
    whole = ended(text, tuple(tool_calls(calls, "1-0", 0)), finish_reason="length")
    assert writer.continues(whole["output"])
    return [*events, *writer.end(whole)]


@given(st.text(max_size=9), st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)), st.integers(0, 30))
def test_however_calls_grew_the_rest_behind_a_number_is_the_same(
    text: str, ends: list[int], others: list[int], number: int
) -> None:
    # When
    first = events_of_calls(text, CALLS, ends)
    again = events_of_calls(text, CALLS, others, starting_after=number)
    # Then
    assert [event for event in first if event["sequence_number"] > number] == again
    told = [event["delta"] for event in first if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(told) == "".join(call.arguments for call in CALLS)
    done = [event["item"]["status"] for event in first if event["type"] == "response.output_item.done"]
    assert done == ["completed"] * (len(done) - 1) + ["incomplete"]


def test_arguments_are_told_while_they_come_and_an_item_ends_when_the_next_begins() -> None:
    # Given
    writer = EventWriter(BEGINNING)
    writer.begin()
    # When
    first = writer.grow(grown("Well", Call("look", '{"at"')))
    second = writer.grow(grown("Well", CALLS[0], Call("wait", "")))
    # Then
    kinds = [event["type"].removeprefix("response.") for event in first]
    assert kinds[-3:] == ["output_item.done", "output_item.added", "function_call_arguments.delta"]
    assert first[-1]["delta"] == '{"at'
    kinds = [event["type"].removeprefix("response.") for event in second]
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "output_item.added"]
    for event in (*first, *second):
        OFFICIAL.validate_python(event)


def test_an_answer_that_calls_something_else_is_no_continuation() -> None:
    # Given
    writer = EventWriter(BEGINNING)
    writer.begin()
    writer.grow(grown("", Call("look", '{"at": ')))
    # When / Then
    for call, continues in ((CALLS[0], True), (CALLS[1], False), (Call("look", "{}"), False)):
        whole = ended("", tuple(tool_calls((call,), "1-0", 0)))
        assert writer.continues(whole["output"]) == continues
    assert not writer.continues([])
