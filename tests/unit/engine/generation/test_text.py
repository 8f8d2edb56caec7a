"""Stop strings and what may be shown of an answer, over a stream that gives one piece of text per token."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.generation.text import AnswerText


class Pieces:
    """A text stream whose token n is the nth piece; the last one is held back until the end."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = pieces

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join(self.pieces[token_id] for token_id in token_ids if token_id < len(self.pieces) - 1)

    def finish(self) -> str:
        return self.pieces[-1] if self.pieces else ""


def told(pieces: Sequence[str], stop: Sequence[str]) -> tuple[AnswerText, list[str]]:
    """All that is told of an answer, token by token."""
    answer = AnswerText(Pieces(pieces), stop)
    deltas = []
    for token_id in range(len(pieces)):
        deltas.append(answer.push([token_id]))
        if answer.is_stopped:
            return answer, deltas
    return answer, [*deltas, answer.finish()]


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "is_stopped"),
    [
        (["ab", "cd", "ef"], [], "abcdef", False),
        (["ab", "cd", "ef"], ["bc"], "a", True),
        (["a", "b", "c", "d", "e"], ["bcd"], "a", True),
        (["ab", "cd", "ef"], ["cde", "x"], "ab", True),
        (["ab", "cd", "ef"], ["ef"], "abcd", True),
        (["ab", "cd", "ef"], ["efg"], "abcdef", False),
        (["stop"], ["stop"], "", True),
        (["aa", "ab"], ["aab"], "a", True),
        (["x", "yz"], ["z", "y"], "x", True),
    ],
)
def test_a_stop_string_ends_the_answer_before_it_even_across_tokens(
    pieces: list[str], stop: list[str], text: str, is_stopped: bool
) -> None:
    answer, deltas = told(pieces, stop)
    assert answer.text == text
    assert answer.is_stopped is is_stopped
    assert "".join(deltas) == text


letters = st.text("ab", min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(letters, max_size=12), st.lists(letters, max_size=3))
def test_deltas_make_up_the_text_and_never_leak_a_stop_string(pieces: list[str], stop: list[str]) -> None:
    # When an answer is told piece by piece
    answer, deltas = told(pieces, stop)
    # Then the deltas are the text, no stop string is in it, and only a stop string can have shortened it
    assert "".join(deltas) == answer.text
    assert not any(word in answer.text for word in stop)
    assert "".join(pieces).startswith(answer.text)
    assert answer.is_stopped or answer.text == "".join(pieces)


def test_text_is_held_back_only_while_a_stop_string_may_come_of_it() -> None:
    answer = AnswerText(Pieces(["one ", "two", "x", ""]), ["two three"])
    assert [answer.push([token]) for token in range(3)] == ["one ", "", "twox"]


@settings(deadline=None)
@given(st.lists(letters, max_size=12), st.lists(letters, min_size=1, max_size=3), st.integers(0, 12))
def test_a_stop_string_counts_where_it_ends_once_stopping_is_allowed(
    pieces: list[str], stop: list[str], first: int
) -> None:
    # Given an answer that no stop string may end before a certain piece
    answer = AnswerText(Pieces([*pieces, ""]), stop)
    deltas: list[str] = []
    for token_id in range(len(pieces)):
        deltas.append(answer.push([token_id], can_stop=token_id >= first))
        if answer.is_stopped:
            break
    else:
        deltas.append(answer.finish())
    # When the pieces are searched one by one for the first that completes a stop string and may end the answer
    expected, is_stopped = "", False
    for token_id, piece in enumerate(pieces):
        before, expected = len(expected), expected + piece
        begins = [
            begin
            for word in stop
            for begin in range(len(expected))
            if expected.startswith(word, begin) and begin + len(word) > before
        ]
        if begins and token_id >= first:
            expected, is_stopped = expected[: min(begins)], True
            break
    # Then the answer ends there
    assert (answer.text, answer.is_stopped) == (expected, is_stopped)
    assert "".join(deltas) == expected


def test_what_has_been_read_is_what_is_certain_and_what_is_held_back() -> None:
    answer = AnswerText(Pieces(["one ", "two", "x", ""]), ["two three"])
    read = [(answer.push([token]), answer.num_certain, answer.num_read) for token in range(3)]
    assert read == [("one ", 4, 4), ("", 4, 7), ("twox", 8, 8)]
