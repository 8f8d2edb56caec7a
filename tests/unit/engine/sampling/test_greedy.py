"""The best token of a row, against torch's own `max` over a float copy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.greedy import best_tokens

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
logit = st.floats(-60_000, 60_000, width=16) | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(st.lists(st.lists(logit, min_size=5, max_size=5), min_size=1, max_size=6))
def test_the_best_token_is_that_of_a_float_copy(dtype: torch.dtype, values: list[list[float]]) -> None:
    # Given rows of any sign, some with NaN or infinity
    rows = torch.tensor(values).to(dtype)
    best, _ = rows.float().max(dim=-1)
    # When the best tokens are looked up
    found = best_tokens(rows)
    # Then they are as high as the highest, and rows that are no distribution are named
    assert found.is_finite.tolist() == best.isfinite().tolist()
    heights = rows.float().gather(1, found.tokens[:, None]).squeeze(1)
    assert heights[found.is_finite].tolist() == best[found.is_finite].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_with_a_sign_is_found_too(dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, 2.0, 0.0], [-1.0, -2.0, -3.0]]).to(dtype)
    rows[:, 2] = torch.tensor(math.nan, dtype=dtype).neg()
    assert best_tokens(rows).is_finite.tolist() == [False, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_logits_the_first_is_best(dtype: torch.dtype) -> None:
    for sign in (1, -1):
        rows = torch.tensor([[sign * 9.0 if sign < 0 else 1.0, sign * 3.0, sign * 3.0, sign * 3.0]]).to(dtype)
        assert best_tokens(rows).tokens.tolist() == [1]


def test_logits_that_are_a_part_of_others_are_read_where_they_lie() -> None:
    whole = torch.arange(24.0).view(2, 12).flip(1)
    assert best_tokens(whole[:, ::2]).tokens.tolist() == [0, 0]
