"""The queue of requests that nobody has looked at yet."""

import pytest

from core.protocol import Generate
from engine.runtime import Arrival
from engine.waiting.intake import Intake


def arrival(name: str, priority: int = 0) -> Arrival:
    return Arrival(b"c", Generate(name, "m", priority=priority), 0.0)


def test_priority_comes_first_and_then_who_came_first() -> None:
    intake = Intake()
    for name, priority in (("a", 0), ("b", 10), ("c", 0), ("d", 10)):
        intake.push(arrival(name, priority))
    assert [intake.pop().request.id for _ in range(4)] == ["b", "d", "a", "c"]


def test_what_was_removed_is_not_given_even_where_the_id_came_again() -> None:
    # Given a request that was removed and came again behind another
    intake = Intake()
    for name in ("a", "b"):
        intake.push(arrival(name))
    assert intake.remove((b"c", "a"))
    assert not intake.remove((b"c", "a"))
    intake.push(arrival("a"))
    # Then it is given once, at its new place
    assert len(intake) == 2
    assert [intake.pop().request.id for _ in range(2)] == ["b", "a"]
    with pytest.raises(IndexError):
        intake.pop()


def test_it_says_how_urgent_the_next_one_is() -> None:
    # Given two, of which the urgent one is removed
    intake = Intake()
    assert intake.best_priority is None
    intake.push(arrival("a"))
    intake.push(arrival("b", 10))
    assert intake.best_priority == 10
    intake.remove((b"c", "b"))
    # Then it is that of the other one
    assert intake.best_priority == 0
    intake.remove((b"c", "a"))
    assert intake.best_priority is None


def test_what_was_removed_takes_no_room_for_long() -> None:
    # Given one that stays at the head while thousands come and go
    intake = Intake()
    intake.push(arrival("head", priority=1))
    for number in range(5_000):
        intake.push(arrival(str(number)))
        intake.remove((b"c", str(number)))
    # Then
    assert len(intake) == 1
    assert len(intake._heap) < 200
    assert intake.pop().request.id == "head"
