"""Outcomes until they are acknowledged."""

import random

from hypothesis import given
from hypothesis import strategies as st

from core.protocol import Delta, EngineMessage, Failed
from engine.outcomes import Outcomes

CLIENT = b"c"


def outcome(name: str, code: str = "overloaded") -> Failed:
    return Failed(name, code, "")


def names(messages: list[EngineMessage]) -> list[str]:
    return [message.id for message in messages if isinstance(message, Failed)]


def test_nothing_is_kept_for_a_client_that_never_acknowledged() -> None:
    kept = Outcomes(10, 2.0)
    assert names(kept.keep(CLIENT, [outcome("a"), outcome("a")], 0.0)) == ["a", "a"]
    assert kept.overdue(100.0) == {}


def test_what_is_not_acknowledged_in_time_is_due_again_and_again() -> None:
    # Given an outcome sent at 0, one at 1, and a delta, which nobody acknowledges
    kept = Outcomes(10, 2.0)
    kept.acknowledge(CLIENT, [])
    kept.keep(CLIENT, [outcome("a"), Delta("b", "text", 1)], 0.0)
    kept.keep(CLIENT, [outcome("b")], 1.0)
    # Then each is due two seconds after it was sent last
    assert kept.overdue(1.9) == {}
    assert kept.overdue(2.0) == {CLIENT: [outcome("a")]}
    assert kept.overdue(3.5) == {CLIENT: [outcome("b")]}
    # And all at once when the client is back, but for those it has
    kept.acknowledge(CLIENT, ["a", "unknown"])
    assert kept.again(CLIENT, 3.6) == [outcome("b")]
    assert kept.overdue(5.5) == {}


def test_a_request_ends_once_while_its_outcome_is_under_way() -> None:
    kept = Outcomes(10, 2.0)
    kept.acknowledge(CLIENT, [])
    assert kept.keep(CLIENT, [outcome("a"), outcome("a", "cancelled")], 0.0) == [outcome("a")]
    assert kept.keep(CLIENT, [outcome("a", "cancelled")], 1.0) == []
    assert kept.is_kept(CLIENT, "a")


def test_the_oldest_are_given_up_beyond_the_bound_and_all_of_a_client_that_is_gone() -> None:
    kept = Outcomes(2, 2.0)
    kept.acknowledge(CLIENT, [])
    kept.keep(CLIENT, [outcome("a"), outcome("b"), outcome("c")], 0.0)
    assert names(kept.again(CLIENT, 1.0)) == ["b", "c"]
    kept.drop(CLIENT)
    assert (kept.again(CLIENT, 1.0), kept.is_followed(CLIENT)) == ([], False)


@given(st.randoms(use_true_random=False), st.integers(1, 30), st.floats(0.0, 0.9))
def test_over_a_wire_that_loses_frames_every_outcome_arrives_and_the_memory_of_it_goes(
    dice: random.Random, num_requests: int, loss_fraction: float
) -> None:
    # Given a client that notes what it has and acknowledges it, through a wire that loses frames both ways
    kept = Outcomes(num_requests, 1.0)
    kept.acknowledge(CLIENT, [])
    todo = [str(number) for number in range(num_requests)]
    has: set[str] = set()
    acks: list[str] = []
    now = 0.0
    # When outcomes are made and sent again as time passes
    while todo or kept.again(CLIENT, now):
        now += 0.5
        frames = [[outcome(todo.pop())]] if todo else []
        sent = [kept.keep(CLIENT, list(frame), now) for frame in frames] + list(kept.overdue(now + 1.0).values())
        for frame in sent:
            if dice.random() >= loss_fraction:
                has.update(names(frame))
                acks += names(frame)
        if dice.random() >= loss_fraction:
            kept.acknowledge(CLIENT, acks)
            acks = []
    # Then the client has all of them, and the engine has forgotten them
    assert has == {str(number) for number in range(num_requests)}
