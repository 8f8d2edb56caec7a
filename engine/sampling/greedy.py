"""The most probable token of every row, and whether the row is a distribution at all.

Rows are read once and never copied, because this runs in every step for every row. On the CPU numpy's `argmax` is ten
times as fast as torch's `max`; sixteen-bit floats are compared as the integers of their bits, whose order is theirs
while the largest is not negative.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Best:
    """tokens: (rows,) int64.  is_finite: (rows,) bool; False where a row holds NaN or plus infinity, or nothing else
    than minus infinity."""

    tokens: Tensor
    is_finite: Tensor


def best_tokens(logits: Tensor) -> Best:
    """logits: (rows, vocabulary) of any float dtype. Of equal logits the first is best on the CPU."""
    if logits.device.type != "cpu":
        best, tokens = logits.max(dim=-1)  # max propagates NaN
        return Best(tokens, best.isfinite())
    logits = logits.contiguous()
    return _best_halves(logits) if logits.dtype in _HALVES else _best_floats(logits)


def _best_floats(logits: Tensor) -> Best:
    tokens = torch.from_numpy(logits.numpy().argmax(axis=-1))  # a NaN is numpy's largest number
    return Best(tokens, _at(logits, tokens).isfinite())


def _best_halves(logits: Tensor) -> Best:
    tokens = torch.from_numpy(logits.view(torch.int16).numpy().argmax(axis=-1).astype(np.int64))
    best = _at(logits, tokens)
    is_number = ~logits.sum(dim=-1).isnan()  # a NaN with a sign is a small integer
    is_finite = best.isfinite() & is_number
    negative = (best.signbit() & is_number).nonzero().squeeze(1)
    if len(negative):  # whose bits are in reverse order
        redone = _best_floats(logits[negative].float())
        tokens[negative], is_finite[negative] = redone.tokens, redone.is_finite
    return Best(tokens, is_finite)


def _at(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(1, tokens[:, None]).squeeze(1)
