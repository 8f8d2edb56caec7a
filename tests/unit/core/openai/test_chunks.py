"""The chunks of streamed answers: exactly what OpenAI's client expects, whatever pieces the answer came in."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from core.openai.chunks import ChunkWriter, Event, Heading, Standing, total_usage, whole_body
from core.openai.completion import CHAT_ENDPOINT, TEXT_ENDPOINT, StreamOptions
from core.openai.message import Call, Message
from core.openai.progress import new_progress, parse_progress

USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 1},
}
CALLS = Message("Let me see.", (Call("look", '{"at": "the wheel"}'), Call("wait", "{}")))
WHOLE = Standing(CALLS, None, "tool_calls")


def heading(endpoint: str = CHAT_ENDPOINT, **options: bool) -> Heading:
    return Heading(endpoint, "req_1-0", "test/model", 1000, StreamOptions(**options))


def told(writer: ChunkWriter, *standings: Standing, usage: dict[str, Any] = USAGE) -> list[Event]:
    return [event for standing in standings for event in writer.advance(0, standing, usage)]


def test_a_chat_begins_with_the_role_and_ends_with_the_reason() -> None:
    # Given
    writer = ChunkWriter(heading(), new_progress(1))
    # When
    events = told(
        writer, Standing(Message("Hel")), Standing(Message("Hello")), Standing(Message("Hello"), None, "stop")
    )
    # Then
    for event in events:
        ChatCompletionChunk.model_validate(event.data, strict=True)
    assert [event.data["choices"][0] for event in events] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        },
        {"index": 0, "delta": {"content": "Hel"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": "lo"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"},
    ]
    assert {(event.data["id"], event.data["created"], "usage" in event.data) for event in events} == {
        ("chatcmpl-req_1-0", 1000, False)
    }
    assert list(writer.end(USAGE)) == []


def test_a_text_has_no_role() -> None:
    # Given
    writer = ChunkWriter(heading(TEXT_ENDPOINT), new_progress(1))
    # When
    events = told(writer, Standing(Message("He")), Standing(Message("Hey"), None, "length"))
    # Then
    assert [(event.data["choices"][0]["text"], event.data["choices"][0]["finish_reason"]) for event in events] == [
        ("He", None),
        ("y", None),
        ("", "length"),
    ]


def test_usage_comes_once_at_the_end_or_with_every_chunk() -> None:
    # Given
    at_end = ChunkWriter(heading(include_usage=True), new_progress(1))
    always = ChunkWriter(heading(include_usage=True, continuous_usage_stats=True), new_progress(1))
    # When
    for writer in (at_end, always):
        events = [*told(writer, Standing(Message("a"), None, "stop")), *writer.end(USAGE)]
        usages = [event.data["usage"] for event in events]
        # Then
        assert events[-1].data["choices"] == []
        assert usages[-1] == USAGE
        assert list(writer.end(USAGE)) == []
        assert set(map(str, usages[:-1])) == {str(USAGE if writer is always else None)}


def test_a_tool_call_is_named_once_and_its_arguments_follow() -> None:
    # When
    events = told(
        ChunkWriter(heading(), new_progress(1)),
        Standing(Message("Let me see.", (Call("look", '{"at": '),))),
        WHOLE,
    )
    # Then
    deltas = [event.data["choices"][0]["delta"] for event in events]
    assert deltas[1:] == [
        {"content": "Let me see."},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_req_1-0_0_0",
                    "type": "function",
                    "function": {"name": "look", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"the wheel"}'}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "call_req_1-0_0_1",
                    "type": "function",
                    "function": {"name": "wait", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert events[-1].data["choices"][0]["finish_reason"] == "tool_calls"


def test_log_probabilities_come_with_the_text_of_their_tokens() -> None:
    # Given
    def standing(count: int, reason: str | None = None) -> Standing:
        tokens = [{"token": letter, "logprob": -1.0, "bytes": [97], "top_logprobs": []} for letter in "abcd"]
        return Standing(Message("abcd"[:count]), {"content": tokens[:count], "refusal": None}, reason)

    # When
    events = told(ChunkWriter(heading(), new_progress(1)), standing(1), standing(1), standing(4, "stop"))
    # Then
    logprobs = [event.data["choices"][0]["logprobs"] for event in events]
    assert [one and [token["token"] for token in one["content"]] for one in logprobs] == [
        None,
        ["a"],
        ["b", "c", "d"],
        None,
    ]
    assert events[-1].id == "0:4@4f"


def test_an_empty_answer_is_an_end_that_is_not_told_twice() -> None:
    writer = ChunkWriter(heading(TEXT_ENDPOINT), new_progress(1))
    (event,) = told(writer, Standing(Message(), None, "stop"))
    resumed = ChunkWriter(heading(TEXT_ENDPOINT), parse_progress(event.id, 1))
    assert told(resumed, Standing(Message(), None, "stop")) == []


def collected(events: list[Event]) -> Message:
    """What a client makes of them."""
    content, calls = "", list[Call]()
    for event in events:
        delta = event.data["choices"][0]["delta"]
        content += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            function = call["function"]
            if "id" in call:
                calls.append(Call(function["name"], function["arguments"]))
            else:
                calls[-1] = Call(calls[-1].name, calls[-1].arguments + function["arguments"])
    return Message(content, tuple(calls))


@given(st.data())
def test_whoever_comes_back_at_any_event_gets_exactly_the_rest(data: st.DataObject) -> None:
    # Given an answer that comes in pieces, of which the client has seen some events
    cuts = sorted(data.draw(st.lists(st.integers(0, 30), max_size=5)))
    standings = [Standing(begun(CALLS, cut)) for cut in cuts] + [WHOLE]
    events = told(ChunkWriter(heading(), new_progress(1)), *standings)
    seen = data.draw(st.integers(0, len(events)))
    last_id = events[seen - 1].id if seen else str(new_progress(1))
    # When it comes back and the answer comes in other pieces
    cuts = sorted(data.draw(st.lists(st.integers(0, 30), max_size=5)))
    others = [Standing(begun(CALLS, cut)) for cut in cuts] + [WHOLE]
    rest = told(ChunkWriter(heading(), parse_progress(last_id, 1)), *others)
    # Then
    assert collected([*events[:seen], *rest]) == CALLS
    assert [event.data["choices"][0]["finish_reason"] for event in [*events[:seen], *rest]][-1] == "tool_calls"


def begun(message: Message, length: int) -> Message:
    """Its first characters, arguments included."""
    content, calls, left = message.content[:length], list[Call](), length - len(message.content)
    for call in message.calls:
        if left > 0:
            calls.append(Call(call.name, call.arguments[:left]))
            left -= len(call.arguments)
    return Message(content, tuple(calls))


def test_several_answers_are_one_with_their_choices_in_a_row() -> None:
    # Given
    body = (
        '{"id":"cmpl-1","created":1,"model":"m","object":"text_completion",'
        '"choices":[{"index":0,"text":"%s","logprobs":null,"finish_reason":"stop"}],"usage":'
        '{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}'
    )
    # When
    whole = Completion.model_validate_json(whole_body([body % "a", body % "b"]))
    # Then
    assert [(choice.index, choice.text) for choice in whole.choices] == [(0, "a"), (1, "b")]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.total_tokens) == (6, 10)
    assert whole_body(["as it is"]) == "as it is"
    assert total_usage([{"usage": USAGE}, {"usage": USAGE}])["prompt_tokens_details"] == {"cached_tokens": 2}
