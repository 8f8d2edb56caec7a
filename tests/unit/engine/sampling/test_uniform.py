"""Random numbers: in range, even, and the same one by one as all at once."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.uniform import seed_array, uniform, uniforms

seeds = st.integers(-(2**70), 2**70)
counters = st.integers(0, 2**40)


@settings(deadline=None)
@given(seeds, counters)
def test_random_numbers_are_at_least_zero_and_below_one(seed: int, counter: int) -> None:
    assert 0 <= uniform(seed, counter) < 1


@settings(deadline=None)
@given(st.lists(st.tuples(seeds, counters), min_size=1, max_size=20))
def test_many_at_once_are_those_that_come_one_by_one(pairs: list[tuple[int, int]]) -> None:
    # When numbers are computed for all pairs of seed and counter at once
    numbers = uniforms(seed_array(seed for seed, _ in pairs), np.array([c for _, c in pairs], dtype=np.uint64))
    # Then each is exactly that of its pair
    assert numbers.tolist() == [uniform(seed, counter) for seed, counter in pairs]


def test_random_numbers_spread_evenly_along_seeds_and_along_tokens() -> None:
    for numbers in ([uniform(seed, 0) for seed in range(10_000)], [uniform(7, counter) for counter in range(10_000)]):
        buckets = [sum(low <= number < low + 0.1 for number in numbers) for low in (n / 10 for n in range(10))]
        assert all(900 < bucket < 1_100 for bucket in buckets)
        assert len(set(numbers)) > 9_990
