"""Drawing against transformers' own logits processors: the same tokens may come, each as often as it should."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.sampling.draw import draw, draw_restricted, invert, plain_tokens, scaled
from engine.sampling.restrict import Restrictions

NUM_DRAWS = 1_000
NUMBERS = (torch.arange(NUM_DRAWS, dtype=torch.float64) + 0.5) / NUM_DRAWS


def random_logits(size: int, seed: int, spread: float = 2.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def warped(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Probabilities after transformers' warpers, in the order of its `generate`."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    no_prompt, scores = torch.zeros(1, 1, dtype=torch.long), logits[None].clone()
    return warpers(cast(torch.LongTensor, no_prompt), cast(torch.FloatTensor, scores))[0].softmax(dim=-1)


def drawn_shares(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """How often each token comes over numbers that lie evenly in [0, 1)."""
    rows = logits.repeat(NUM_DRAWS, 1)
    heights = scaled(rows, rows.max(dim=-1).values, torch.full((NUM_DRAWS,), temperature))
    bounds = torch.full((NUM_DRAWS,), min_p)
    if top_k or top_p < 1:
        wanted = Restrictions(torch.full((NUM_DRAWS,), top_k or len(logits)), torch.full_like(NUMBERS, top_p), bounds)
        tokens = draw_restricted(heights, NUMBERS, wanted)
    else:
        tokens = draw(heights, NUMBERS, bounds if min_p else None)
    return tokens.bincount(minlength=len(logits)) / NUM_DRAWS


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([5, 70, 300, 513]),
    seed=st.integers(0, 1_000),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 40, 65, 400]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_tokens_come_as_often_as_transformers_says(
    size: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    # Given a row of logits
    logits = random_logits(size, seed)
    # When it is drawn from at numbers that lie evenly
    shares = drawn_shares(logits, temperature, min(top_k, size), top_p, min_p)
    # Then no token comes that may not, and every other has its share to within one draw at either end
    expected = warped(logits, temperature, min(top_k, size), top_p, min_p)
    assert not shares[expected == 0].any()
    torch.testing.assert_close(shares, expected, atol=2 / NUM_DRAWS, rtol=0)


@pytest.mark.parametrize("size", [50, 1_100, 5_000])
def test_flat_distributions_are_cut_beyond_the_first_candidates(size: int) -> None:
    # Given logits that hardly differ, of which top_p leaves half and top_k all but ten
    for top_k, top_p, expected in ((0, 0.5, size / 2), (size - 10, 1.0, size - 10)):
        rows, numbers = (
            torch.linspace(0, -1e-3, size).repeat(4, 1),
            torch.tensor([0.0, 0.3, 0.6, 1 - 2**-32], dtype=torch.float64),
        )
        wanted = Restrictions(torch.full((4,), top_k or size), torch.full((4,), top_p).double(), torch.zeros(4))
        # When tokens are drawn at both ends and between
        tokens = draw_restricted(rows, numbers, wanted)
        # Then they lie as far apart as what is left
        assert tokens.tolist() == pytest.approx([0, 0.3 * expected, 0.6 * expected, expected - 1], abs=3)


weights = st.lists(st.sampled_from([0.0, 0.0, 1e-6, 0.25, 1.0, 3.0]), min_size=1, max_size=40).filter(any)


@settings(deadline=None)
@given(weights, st.integers(1, 40), st.floats(0, 1, exclude_max=True), st.integers(0, 700))
def test_the_index_is_that_at_which_the_cumulative_weight_passes_the_number(
    values: list[float], stretch: int, number: float, zeros: int
) -> None:
    # Given weights with gaps, over one block or several
    row = torch.cat([torch.zeros(zeros), torch.tensor(values).repeat(stretch)])
    # When the distribution is inverted
    found = int(invert(row[None], torch.tensor([number], dtype=torch.float64)))
    # Then the token has weight, and the number lies in its share, but for rounding
    assert row[found] > 0
    cumulative = row.double().cumsum(0) / row.double().sum()
    assert cumulative[found] - row[found] / row.sum() <= number + 1e-6
    assert number <= cumulative[found] + 1e-6


def test_the_last_number_draws_a_token_that_has_weight() -> None:
    row = torch.zeros(3, 1_000)
    row[0, :300], row[1, 256:512], row[2, 999] = 0.1, 1e-30, 7.0
    tokens = invert(row, torch.full((3,), 1 - 2**-53, dtype=torch.float64))
    assert tokens.tolist() == [299, 511, 999]


@settings(deadline=None)
@given(st.integers(0, 1_000), st.integers(2, 9), st.sampled_from([17, 256, 1_300]))
def test_what_a_row_draws_does_not_depend_on_the_others(seed: int, num_rows: int, size: int) -> None:
    # Given rows that are drawn from together
    rows = torch.stack([random_logits(size, seed + row, spread=1 + row) for row in range(num_rows)])
    numbers = torch.rand(num_rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows -= rows.max(dim=-1, keepdim=True).values
    wanted = Restrictions(
        torch.tensor([size, 5, 70, 1_200] * 3)[:num_rows].clamp(max=size),
        torch.tensor([0.9, 1.0, 0.5] * 3, dtype=torch.float64)[:num_rows],
        torch.zeros(num_rows),
    )
    together = draw_restricted(rows.clone(), numbers, wanted).tolist(), draw(rows.clone(), numbers).tolist()
    # When each is drawn from alone
    alone: tuple[list[int], list[int]] = [], []
    for row in range(num_rows):
        one = torch.tensor([row])
        alone[0].extend(draw_restricted(rows[one], numbers[one], wanted.of(one)).tolist())
        alone[1].extend(draw(rows[one], numbers[one]).tolist())
    # Then its token is the same
    assert alone == together


def test_plain_tokens_are_greedy_at_temperature_zero_and_drawn_above() -> None:
    # Given one row many times, every other one greedy
    logits = random_logits(300, seed=1)
    rows = logits.repeat(NUM_DRAWS, 1)
    temperatures = torch.tensor([0.0, 0.8]).repeat(NUM_DRAWS // 2)
    # When all are chosen
    tokens, is_finite = plain_tokens(rows, temperatures, NUMBERS)
    # Then the greedy ones have the best token and the others what drawing gives, and the logits are as they were
    assert is_finite.all()
    assert set(tokens[::2].tolist()) == {int(logits.argmax())}
    heights = scaled(logits.repeat(NUM_DRAWS, 1), rows.max(dim=-1).values, torch.full((NUM_DRAWS,), 0.8))
    assert tokens[1::2].tolist() == draw(heights, NUMBERS)[1::2].tolist()
    assert torch.equal(rows, logits.repeat(NUM_DRAWS, 1))
