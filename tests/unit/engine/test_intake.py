"""The queue of requests that nobody has looked at yet."""

import pytest

from core.protocol import Generate
from engine.intake import Intake
from engine.runtime import Arrival


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
