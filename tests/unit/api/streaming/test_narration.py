"""What a client is told of a job: pieces of one run, never of two, and the rest from the whole answer."""

import json
from collections.abc import Callable

import pytest

from api.streaming.narration import Narrator
from core.errors import Interrupted
from core.openai.chunks import Event, Heading
from core.openai.completion import CHAT_ENDPOINT, StreamOptions
from core.openai.progress import new_progress, parse_progress
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
