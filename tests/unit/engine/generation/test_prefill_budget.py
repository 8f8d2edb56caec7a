"""How long steps become beside those who decode, on imagined devices."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.generation.prefill_budget import (
    BULK_GROWTH,
    BULK_STEP_SECONDS,
    LEAST_TOKENS,
    UNMEASURED_TOKENS,
    PrefillBudget,
    is_bulk_paced,
)

MOST = 512


@dataclass
class Device:
    """Seconds of a step: `base`, and so much per row that decodes and per prompt token."""

    base: float = 0.02
    row: float = 0.001
    token: float = 0.0005
    budget: PrefillBudget = field(default_factory=lambda: PrefillBudget(MOST))

    def seconds(self, num_decode: int, num_prefill_tokens: int) -> float:
        return self.base + self.row * num_decode + self.token * num_prefill_tokens

    def run(self, num_decode: int, num_prefill_tokens: int) -> float:
        seconds = self.seconds(num_decode, num_prefill_tokens)
        self.budget.observe(num_decode, num_prefill_tokens, seconds)
        return seconds

    def beside(self, num_decode: int, *, is_paced: bool = True) -> float:
        """A step that takes as many prompt tokens as it may."""
        return self.run(num_decode, self.budget.num_tokens(num_decode, is_paced=is_paced))

    def warm_up(self, num_decode: int = 8) -> None:
        self.run(0, 200)
        for _ in range(3):
            self.run(num_decode, 0)


def test_without_anybody_who_decodes_the_whole_budget_is_free() -> None:
    device = Device()
    device.warm_up()
    assert device.budget.num_tokens(0, is_paced=False) == MOST


def test_a_device_that_is_very_slow_gets_steps_that_nobody_takes_for_stuck() -> None:
    # Given a device that would need 512 s for the whole budget
    device = Device(token=1.0)

    # When it processes prompts alone, ever as many tokens as it may
    taken = [device.budget.num_tokens(0, is_paced=False)]
    for _ in range(8):
        device.beside(0)
        taken.append(device.budget.num_tokens(0, is_paced=False))

    # Then the first piece is small and those that follow take seconds
    assert taken[0] == UNMEASURED_TOKENS
    assert taken[1:] == [LEAST_TOKENS] * 8


@pytest.mark.parametrize("num_decode", [0, 3])
def test_before_anything_was_measured_pieces_are_small(num_decode: int) -> None:
    assert PrefillBudget(MOST).num_tokens(num_decode, is_paced=True) == UNMEASURED_TOKENS
    assert PrefillBudget(100).num_tokens(num_decode, is_paced=True) == 100


@given(
    st.floats(0.001, 0.1), st.floats(0.00001, 0.002), st.floats(0.000001, 0.00005), st.integers(1, 64), st.booleans()
)
def test_an_answer_that_keeps_its_pace_slows_down_to_no_less_than_half(
    base: float, row: float, token: float, num_decode: int, is_first: bool
) -> None:
    # Given any device, and a long prompt beside sequences that decode, after a short prompt or a long one
    device = Device(base, row, token)
    device.run(0, 4 if is_first else MOST)
    alone = [device.run(num_decode, 0) for _ in range(3)][-1]
    device.beside(num_decode)
    # When it goes on, step by step, and gets dearer as its context grows
    lengths = []
    for _ in range(20):
        device.token *= 1.02
        lengths.append(device.beside(num_decode))
    # Then no step takes twice as long, unless the least that a prompt moves on by does
    assert max(lengths) <= max(2 * alone, device.seconds(num_decode, LEAST_TOKENS)) + 1e-9


@pytest.mark.parametrize(
    ("num_decode", "num_pending", "is_awaited", "expected"),
    [(16, 2, False, True), (16, 3, False, False), (7, 1, False, False), (64, 8, False, True), (64, 1, True, False)],
)
def test_bulk_work_keeps_its_pace_while_few_places_and_nobody_else_wait_for_their_prompts(
    num_decode: int, num_pending: int, is_awaited: bool, expected: bool
) -> None:
    assert is_bulk_paced(num_decode, num_pending, is_awaited=is_awaited) is expected


def test_what_may_be_used_is_used() -> None:
    device = Device()
    device.warm_up(num_decode=8)
    lengths = [device.beside(8) for _ in range(20)]
    assert lengths[-1] >= 1.6 * device.seconds(8, 0)


@pytest.mark.parametrize("token", [0.0005, 0.005, 0.05])
def test_a_step_that_keeps_no_pace_is_longer_but_bounded(token: float) -> None:
    # Given bulk sequences that decode
    device = Device(token=token)
    device.warm_up()
    # When a long prompt comes
    lengths = [device.beside(8, is_paced=False) for _ in range(20)]
    # Then its pieces are larger than at an even pace, and an arrival waits for a second or so
    alone = device.seconds(8, 0)
    assert max(lengths) <= max(BULK_STEP_SECONDS, BULK_GROWTH * alone, device.seconds(8, LEAST_TOKENS)) * 1.01
    assert lengths[-1] > 2 * alone


def test_prompts_always_move_on() -> None:
    device = Device(base=0.0001, row=0.0, token=10.0)
    device.warm_up()
    assert device.budget.num_tokens(8, is_paced=True) == LEAST_TOKENS
    assert PrefillBudget(4).num_tokens(8, is_paced=True) == 4


def test_one_step_in_which_the_machine_was_busy_elsewhere_changes_little() -> None:
    # Given a device that is known well
    device = Device()
    device.warm_up()
    before = [device.beside(8) for _ in range(10)][-1]
    # When one step takes a hundred times as long
    device.budget.observe(8, 50, 100 * before)
    device.budget.observe(8, 0, 100 * before)
    # Then the next prompts still move, and soon as before
    assert device.budget.num_tokens(8, is_paced=True) >= LEAST_TOKENS
    for _ in range(20):
        device.run(8, 0)
        device.run(8, 50)
    assert device.beside(8) == pytest.approx(before, rel=0.1)
