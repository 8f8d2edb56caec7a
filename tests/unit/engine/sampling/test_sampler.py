"""Sampling: distributions, restrictions, and that a row's tokens are its own affair."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.protocol import Sampling
from engine.generation.sequence import Sequence
from engine.sampling.sampler import sample, uniform

PROBABILITIES = (0.5, 0.3, 0.15, 0.05)
NUM_DRAWS = 4_000


def sequence(sampling: Sampling, seed: int = 0) -> Sequence:
    return Sequence((b"", "x"), [1], sampling, 0, 0, seed, 10)


def logits(num_rows: int) -> torch.Tensor:
    return torch.tensor(PROBABILITIES).log().repeat(num_rows, 1)


def shares(sampling: Sampling) -> list[float]:
    """How often each token is drawn, over as many seeds."""
    drawn = sample(logits(NUM_DRAWS), [sequence(sampling, seed) for seed in range(NUM_DRAWS)])
    return [drawn.count(token) / NUM_DRAWS for token in range(4)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=0.5), tuple(p * p / 0.365 for p in PROBABILITIES)),
        (Sampling(top_k=2), (0.625, 0.375, 0, 0)),
        (Sampling(top_p=0.6), (0.625, 0.375, 0, 0)),
        (Sampling(top_p=0.49), (1, 0, 0, 0)),
        (Sampling(top_k=2, top_p=0.6), (1, 0, 0, 0)),  # 0.625 of what top_k left is enough
        (Sampling(temperature=0), (1, 0, 0, 0)),
        (Sampling(temperature=1e-30), (1, 0, 0, 0)),
    ],
)
def test_tokens_come_as_often_as_their_parameters_say(sampling: Sampling, expected: tuple[float, ...]) -> None:
    # Three standard deviations of a share of NUM_DRAWS draws, at most
    assert shares(sampling) == pytest.approx(list(expected), abs=3 * math.sqrt(0.25 / NUM_DRAWS))
    assert [share > 0 for share in shares(sampling)] == [probability > 0 for probability in expected]


def test_top_p_is_right_where_the_vocabulary_is_larger_than_the_candidates() -> None:
    # Given a flat distribution over more tokens than are sorted first
    flat = torch.zeros(200, 5_000)
    # When half of its mass may be drawn from
    drawn = sample(flat, [sequence(Sampling(top_p=0.5), seed) for seed in range(200)])
    # Then that is 2,500 tokens, not the first 1,024
    assert len({token for token in drawn if token is not None}) > 150
    ranks = flat[0].sort(descending=True).indices[:2_501].tolist()
    assert {token for token in drawn if token is not None} <= set(ranks)


def test_a_row_that_is_not_finite_fails_alone() -> None:
    # Given rows of which some hold NaN or infinity
    rows = logits(5)
    rows[1, 2], rows[2, 0], rows[3] = math.nan, math.inf, -math.inf
    samplings = [Sampling(), Sampling(top_p=0.9), Sampling(), Sampling(temperature=0), Sampling(top_k=2)]
    sequences = [sequence(sampling, seed) for seed, sampling in enumerate(samplings)]
    # When they are sampled
    tokens = sample(rows, sequences)
    # Then these rows have no token, and the others those they have without them
    assert [token is None for token in tokens] == [False, True, True, True, False]
    assert [tokens[0], tokens[4]] == sample(logits(2), [sequences[0], sequences[4]])


def test_forbidden_tokens_are_never_drawn() -> None:
    # Given logits that forbid the last token, as some models do
    rows = logits(500)
    rows[:, 3] = -math.inf
    # Then nobody draws it
    for sampling in (Sampling(), Sampling(top_p=0.99), Sampling(top_k=4)):
        assert 3 not in sample(rows, [sequence(sampling, seed) for seed in range(500)])


@given(st.integers(-(2**70), 2**70), st.integers(0, 10_000))
def test_random_numbers_are_at_least_zero_and_below_one(seed: int, counter: int) -> None:
    assert 0 <= uniform(seed, counter) < 1


def test_random_numbers_spread_evenly_along_seeds_and_along_tokens() -> None:
    for numbers in ([uniform(seed, 0) for seed in range(10_000)], [uniform(7, counter) for counter in range(10_000)]):
        buckets = [sum(low <= number < low + 0.1 for number in numbers) for low in (n / 10 for n in range(10))]
        assert all(900 < bucket < 1_100 for bucket in buckets)
        assert len(set(numbers)) > 9_990
