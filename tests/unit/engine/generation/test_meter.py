"""Steps counted by kind and size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.protocol import Phase
from engine.generation.meter import StepMeter, StepTotals

STEPS = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 9), st.integers(0, 4)), max_size=30)


def meter_of(steps: list[tuple[int, int, int]]) -> StepMeter:
    meter = StepMeter()
    for num_decode, num_prefill, num_tokens in steps:
        meter.observe(num_decode, num_prefill * num_tokens, 1.0, num_prefill if num_tokens else 0)
    return meter


def test_steps_are_told_apart_by_what_is_in_them() -> None:
    # Given two steps of decoding, one of a prompt, one of both, and one of nothing
    meter = StepMeter()
    meter.observe(4, 0, 0.5)
    meter.observe(4, 0, 0.25)
    meter.observe(0, 512, 3.0, 2)
    meter.observe(3, 100, 2.0, 1)
    meter.observe(0, 0, 9.0)
    # Then each is counted with its time
    totals = meter.totals()
    assert (totals.decode, totals.prefill, totals.mixed) == (Phase(2, 0.75), Phase(1, 3.0), Phase(1, 2.0))
    assert totals.rows_histogram == [0, 1, 3]


@pytest.mark.parametrize(("num_rows", "bucket"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (256, 8)])
def test_a_size_falls_into_the_bucket_of_the_next_power_of_two(num_rows: int, bucket: int) -> None:
    meter = StepMeter()
    meter.observe(num_rows, 0, 1.0)
    assert meter.totals().rows_histogram == [0] * bucket + [1]


@given(STEPS, STEPS)
def test_totals_of_two_models_add_up_to_those_of_one_that_did_both(
    one: list[tuple[int, int, int]], other: list[tuple[int, int, int]]
) -> None:
    assert meter_of(one).totals() + meter_of(other).totals() == meter_of(one + other).totals()
    totals = meter_of(one).totals()
    assert sum(totals.rows_histogram) == sum(p.num_steps for p in (totals.prefill, totals.decode, totals.mixed))
    assert totals + StepTotals() == totals
