"""What a client is told of a job: pieces of one run, never of two, and the rest from the whole answer."""

import json
from collections.abc import Callable

import pytest

from api.streaming import narration
from api.streaming.narration import Narrator
from core.errors import Interrupted
from core.openai.answer import TextOffsets, chat_logprobs, text_logprobs
from core.openai.chunks import Event, Heading
from core.openai.completion import CHAT_ENDPOINT, TEXT_ENDPOINT, StreamOptions
from core.openai.message import Message
from core.openai.progress import new_progress, parse_progress
from core.openai.tool_calls import read_message
from core.protocol import TokenLogprob
from db.tables import OutcomeRow
from tasks.relay import Piece

HEADING = Heading(CHAT_ENDPOINT, "req_1-0", "m", 1000, StreamOptions(continuous_usage_stats=True))


def narrator(last_event_id: str | None = None, num_answers: int = 1) -> Narrator:
    progress = parse_progress(last_event_id, num_answers) if last_event_id else new_progress(num_answers)
    return Narrator(HEADING, 1, num_answers, progress)


def piece(offset: int, text: str, attempt: int = 1, choice: int = 0) -> Piece:
    return Piece(attempt, 0, choice, offset, text, offset + len(text), prompt_tokens=5)


def outcome(*texts: str) -> OutcomeRow:
    choices = [
        {"index": index, "logprobs": None, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for index, text in enumerate(texts)
    ]
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 9,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    return OutcomeRow(index=0, status_code=200, body=json.dumps({"choices": choices, "usage": usage}))


def text_of(events: list[Event], index: int = 0) -> str:
    choices = [choice for event in events for choice in event.data["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_pieces_and_the_whole_answer_make_up_one_text() -> None:
    # Given
    told = narrator()
    # When
    first = told.grow([piece(0, "ab"), piece(2, "c")])
    rest = told.end([outcome("abcdef")], attempt=1)
    # Then
    assert (text_of(first), text_of(rest)) == ("abc", "def")
    assert first[-1].id == "1:3"
    assert first[-1].data["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_what_is_told_twice_is_said_once() -> None:
    told = narrator()
    assert text_of(told.grow([piece(0, "ab"), piece(0, "ab"), piece(2, "c"), piece(0, "ab")])) == "abc"


def test_behind_a_gap_everything_waits_for_the_whole_answer() -> None:
    # Given
    told = narrator()
    told.grow([piece(0, "ab")])
    # When
    behind = told.grow([piece(5, "fg"), piece(7, "h")])
    # Then
    assert behind == []
    assert text_of(told.end([outcome("abcdefgh")], attempt=1)) == "cdefgh"


def test_choices_grow_side_by_side() -> None:
    # Given
    told = narrator(num_answers=2)
    # When
    events = told.grow([piece(0, "x", choice=1), piece(0, "a"), piece(1, "y", choice=1)])
    # Then
    assert (text_of(events, 0), text_of(events, 1)) == ("a", "xy")
    assert events[-1].data["usage"]["prompt_tokens"] == 5, "the prompt is the same for all of them"
    assert text_of(told.end([outcome("ab", "xyz")], attempt=1), 1) == "z"


def test_a_run_that_ended_before_its_first_word_was_never_seen() -> None:
    told = narrator()
    told.interrupt(attempt=1)
    assert text_of(told.grow([piece(0, "new", attempt=2)])) == "new"


CONTINUATIONS: dict[str, Callable[[Narrator], object]] = {
    "interruption": lambda told: told.interrupt(attempt=1),
    "pieces of another run": lambda told: told.grow([piece(0, "ab", attempt=2)]),
    "another answer": lambda told: told.end([outcome("xyz")], attempt=2),
}


@pytest.mark.parametrize("name", CONTINUATIONS)
def test_a_text_that_has_begun_is_not_continued_by_another_run(name: str) -> None:
    # Given
    told = narrator()
    told.grow([piece(0, "ab")])
    # When / Then
    with pytest.raises(Interrupted) as interrupted:
        CONTINUATIONS[name](told)
    assert interrupted.value.code == "stream_interrupted"


def test_pieces_of_a_run_that_was_given_up_are_left_out() -> None:
    told = narrator()
    told.grow([piece(0, "new", attempt=2)])
    assert told.grow([piece(0, "old", attempt=1)]) == []
    told.interrupt(attempt=1)


def test_whoever_comes_back_without_the_relay_gets_the_rest_of_the_same_run_alone() -> None:
    assert text_of(narrator("3:2").end([outcome("abcd")], attempt=3)) == "cd"
    with pytest.raises(Interrupted):
        narrator("3:2").end([outcome("abcd")], attempt=4)


NUM_PIECES = 400


def test_calls_are_not_read_anew_with_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a call that comes letter by letter
    whole = '<tool_call>{"name": "look", "arguments": {"at": "' + "x" * NUM_PIECES + '"}}</tool_call>'
    num_letters_read = 0

    def counted(tool_format: str, text: str, *, is_end: bool) -> Message:
        nonlocal num_letters_read
        num_letters_read += len(text)
        return read_message(tool_format, text, is_end=is_end)

    monkeypatch.setattr("api.streaming.growing.read_message", counted)
    told = narrator()
    # When
    pieces = [Piece(1, 0, 0, place, letter, place, tool_format="tags") for place, letter in enumerate(whole)]
    events = [event for one in pieces for event in told.grow([one])]
    # Then
    assert num_letters_read < len(whole) ** 2 / 4
    calls = [call for event in events for call in event.data["choices"][0]["delta"].get("tool_calls", ())]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert len(arguments) > NUM_PIECES * 0.9
    assert ('{"at": "' + "x" * NUM_PIECES).startswith(arguments[:NUM_PIECES])


@pytest.mark.parametrize("endpoint", [CHAT_ENDPOINT, TEXT_ENDPOINT])
def test_each_log_probability_is_written_once(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    # Given tokens of two bytes each, half a letter and one and a half
    letters = "\u00e9a" * NUM_PIECES
    encoded = letters.encode()
    tokens = [TokenLogprob("?", encoded[place : place + 2], -0.5) for place in range(0, len(encoded), 2)]
    name = "chat_logprobs" if endpoint == CHAT_ENDPOINT else "text_logprobs"
    write = {"chat_logprobs": chat_logprobs, "text_logprobs": text_logprobs}[name]
    written: list[int] = []

    def counted(tail: list[TokenLogprob], *more: TextOffsets) -> dict[str, object]:
        written.append(len(tail))
        return write(tail, *more)

    monkeypatch.setattr(narration, name, counted)
    heading = Heading(endpoint, "req_1-0", "m", 1000, StreamOptions())
    told = Narrator(heading, 1, 1, new_progress(1))
    # When
    events = [
        event
        for place, token in enumerate(tokens)
        for event in told.grow([Piece(1, 0, 0, place, "x", place + 1, logprobs=[token])])
    ]
    # Then
    assert sum(written) == len(tokens)
    found: dict[str, list[object]] = {}
    for event in events:
        for field, values in (event.data["choices"][0]["logprobs"] or {}).items():
            found.setdefault(field, []).extend(values or ())
    assert found == {field: values or [] for field, values in write(tokens).items()}
