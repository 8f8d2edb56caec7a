"""From logits to tokens on the device, for rows that want the most probable token or a draw from what temperature,
top_k, top_p and min_p leave.

These are most rows of a busy engine, and their tokens need not come to the host before the next step begins. The
arithmetic is that of `engine.sampling`, so that a row's tokens do not depend on what its neighbours in the batch want.
Every other row goes through `engine.sampling.sampler`, and so do its neighbours for as long as it is there.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.protocol import Sampling
from engine.generation.sequence import Sequence
from engine.paged.batch import to_device
from engine.sampling.draw import GREEDY_BELOW, plain_tokens, restricted_tokens
from engine.sampling.greedy import best_tokens
from engine.sampling.restrict import Extent, Restrictions

FAILED = -1
"""In the place of a token: the row held a NaN or an infinity."""


@dataclass(frozen=True, slots=True)
class Restricted:
    """What the rows of a batch want, of which at least one has a top_k, top_p or min_p."""

    restrictions: Restrictions
    extent: Extent


class LatestRestrictions:
    """Those of the batch that was asked for last, so that they go to the device only when its rows change."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self._restricted: Restricted | None = None

    def of(self, sequences: list[Sequence], logits: Tensor) -> Restricted | None:
        """None where no row is restricted. logits: (rows, vocabulary)."""
        if sequences != self._sequences:
            self._restricted = _restricted(sequences, logits)
            self._sequences = list(sequences)
        return self._restricted


def sample_greedy(logits: Tensor) -> Tensor:
    """logits: (rows, vocabulary). (rows,) int64, `FAILED` where a row is not finite."""
    best = best_tokens(logits)
    return torch.where(best.is_finite, best.tokens, FAILED)


def sample_plain(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    """temperatures: (rows,) float32, 0 is greedy. numbers: (rows,) float64 in [0, 1). (rows,) int64 as above."""
    tokens, is_finite = plain_tokens(logits, temperatures, numbers)
    return torch.where(is_finite, tokens, FAILED)


def sample_restricted(logits: Tensor, temperatures: Tensor, numbers: Tensor, restricted: Restricted) -> Tensor:
    """As `sample_plain`."""
    tokens, is_finite = restricted_tokens(logits, temperatures, numbers, restricted.restrictions, restricted.extent)
    return torch.where(is_finite, tokens, FAILED)


def _restricted(sequences: list[Sequence], logits: Tensor) -> Restricted | None:
    vocabulary = logits.shape[-1]
    rows = [_restrictions(sequence.sampling, vocabulary) for sequence in sequences]
    if all(row == (vocabulary, 1.0, 0.0) for row in rows):
        return None
    top_k, top_p, min_p = to_device(np.array(rows, np.float64).T, logits.device)
    restrictions = Restrictions(top_k.long(), top_p, min_p.float())
    return Restricted(restrictions, _extent([(k, p) for k, p, _ in rows], vocabulary))


def _restrictions(sampling: Sampling, vocabulary: int) -> tuple[int, float, float]:
    """top_k, top_p and min_p; the most probable token needs none of them."""
    if sampling.temperature < GREEDY_BELOW:
        return vocabulary, 1.0, 0.0
    return min(sampling.top_k or vocabulary, vocabulary), min(sampling.top_p, 1.0), sampling.min_p


def _extent(rows: list[tuple[int, float]], vocabulary: int) -> Extent:
    """rows: top_k and top_p."""
    return Extent(
        largest_k=max((k for k, _ in rows if k < vocabulary), default=0),
        has_p=any(p < 1 for _, p in rows),
        has_p_alone=any(p < 1 and k == vocabulary for k, p in rows),
    )
