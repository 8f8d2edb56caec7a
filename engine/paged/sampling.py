"""From logits to tokens on the device, for rows that want the most probable token or a draw by temperature alone.

These are most rows of a busy engine, and their tokens need not come to the host before the next step begins. The
arithmetic is that of `engine.sampling`, so that a row's tokens do not depend on what its neighbours in the batch want.
Every other row goes through `engine.sampling.sampler`, and so do its neighbours for as long as it is there.
"""

import torch
from torch import Tensor

from engine.sampling.draw import plain_tokens
from engine.sampling.greedy import best_tokens

FAILED = -1
"""In the place of a token: the row held a NaN or an infinity."""


def sample_greedy(logits: Tensor) -> Tensor:
    """logits: (rows, vocabulary). (rows,) int64, `FAILED` where a row is not finite."""
    best = best_tokens(logits)
    return torch.where(best.is_finite, best.tokens, FAILED)


def sample_plain(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    """temperatures: (rows,) float32, 0 is greedy. numbers: (rows,) float64 in [0, 1). (rows,) int64 as above."""
    tokens, is_finite = plain_tokens(logits, temperatures, numbers)
    return torch.where(is_finite, tokens, FAILED)
