"""Drawing a token from a distribution: tensors in, tokens out; nothing here knows of sequences.

A token is found by inverting the cumulative distribution at a given number in [0, 1), so that the number decides alone.
No row's result depends on which other rows there are. `draw` and `plain_tokens` never wait for the device and have no
shape that depends on data: they may be captured in a CUDA graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5  # a smaller temperature overflows float32 and means the same
_BLOCK = 256
_NUM_CANDIDATES = (64, 1024)  # sorted first; where they do not hold what may be drawn, the whole vocabulary is


@dataclass(frozen=True, slots=True)
class Restrictions:
    """Per row. top_k: int64, off is the size of the vocabulary. top_p: float64, off is 1. min_p: float32, off is 0."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def of(self, rows: Tensor) -> "Restrictions":
        return Restrictions(self.top_k[rows], self.top_p[rows], self.min_p[rows])


def plain_tokens(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of rows that use a temperature at most, those that `sampler.sample` gives them, and which rows are finite.

    logits: (rows, vocabulary). temperatures: (rows,) float32, 0 is greedy. numbers: (rows,) float64.
    """
    best, greedy = logits.max(dim=-1)
    is_greedy = temperatures < GREEDY_BELOW
    weights = scaled(logits.to(torch.float32, copy=True), best.float(), temperatures.masked_fill(is_greedy, 1.0)).exp_()
    return torch.where(is_greedy, greedy, invert(weights, numbers)), best.isfinite()


def scaled(logits: Tensor, best: Tensor, temperatures: Tensor) -> Tensor:
    """In place: so that the best is 0. logits: (rows, vocabulary) float32; best, temperatures: (rows,) float32."""
    return logits.sub_(best[:, None]).div_(temperatures[:, None])


def draw(logits: Tensor, numbers: Tensor, min_p: Tensor | None = None) -> Tensor:
    """logits: (rows, vocabulary) float32, as `scaled` leaves them; overwritten. min_p: (rows,) or None."""
    weights = logits.exp_()  # the best weighs 1, so min_p is a bound as it stands
    if min_p is not None:
        weights.masked_fill_(weights < min_p[:, None], 0.0)
    return invert(weights, numbers)


def draw_restricted(logits: Tensor, numbers: Tensor, restrictions: Restrictions) -> Tensor:
    """top_k, then top_p of what is left, then min_p, in transformers' order. logits: as for `draw`, and kept."""
    probabilities = logits.softmax(dim=-1)
    vocabulary = logits.shape[-1]
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    for num_candidates in (*(n for n in _NUM_CANDIDATES if n < vocabulary), vocabulary):
        values, order = _largest(probabilities[left], num_candidates)
        here = restrictions.of(left)
        is_enough = _is_enough(values, here, vocabulary)
        done = left[is_enough]
        chosen = invert(_kept(values, here)[is_enough], numbers[done])
        tokens[done] = order[is_enough].gather(1, chosen[:, None]).squeeze(1)
        left = left[~is_enough]
        if len(left) == 0:
            break
    return tokens


def invert(weights: Tensor, numbers: Tensor) -> Tensor:
    """(rows,) int64: the first index whose cumulative weight exceeds the row's number times all weight.

    weights: (rows, vocabulary) float32, not negative. The block of tokens is found first, then the token inside it:
    one pass in float32 instead of a cumulative sum in float64 over the vocabulary.
    """
    vocabulary = weights.shape[-1]
    blocks = _block_sums(weights).cumsum(dim=-1, dtype=torch.float64)
    targets = numbers[:, None] * blocks[:, -1:]
    block = torch.searchsorted(blocks, targets, right=True).clamp_(max=blocks.shape[-1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp_(min=0)), 0.0)
    fraction = (targets - before) / (blocks.gather(1, block) - before)
    places = block * _BLOCK + torch.arange(min(_BLOCK, vocabulary), device=weights.device)
    inside = weights.gather(1, places.clamp(max=vocabulary - 1)).masked_fill_(places >= vocabulary, 0.0)
    inside = inside.cumsum(dim=-1, dtype=torch.float64)
    total = inside[:, -1:]
    # Rounding must not carry the target past the last token that has weight.
    goal = torch.minimum(fraction.nan_to_num_() * total, total.nextafter(torch.zeros_like(total)))
    place = torch.searchsorted(inside, goal, right=True)
    return (block * _BLOCK + place).squeeze(1).clamp_(max=vocabulary - 1)


def _block_sums(weights: Tensor) -> Tensor:
    vocabulary = weights.shape[-1]
    if vocabulary < _BLOCK:
        return weights.sum(dim=-1, keepdim=True)
    sums = weights.unfold(1, _BLOCK, _BLOCK).sum(dim=-1)
    rest = vocabulary % _BLOCK
    return torch.cat([sums, weights[:, vocabulary - rest :].sum(dim=-1, keepdim=True)], dim=1) if rest else sums


def _largest(probabilities: Tensor, number: int) -> tuple[Tensor, Tensor]:
    if number == probabilities.shape[-1]:
        return probabilities.sort(dim=-1, descending=True)
    return probabilities.topk(number, dim=-1)


def _is_enough(values: Tensor, restrictions: Restrictions, vocabulary: int) -> Tensor:
    """Whether no token beyond the candidates may be drawn. values: (rows, candidates), falling."""
    if values.shape[-1] == vocabulary:
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    holds_k = restrictions.top_k <= values.shape[-1]
    has_top_p = (values.sum(dim=-1, dtype=torch.float64) >= restrictions.top_p) & (restrictions.top_p < 1)
    has_min_p = values[:, -1] < restrictions.min_p * values[:, 0]
    # top_p is a share of what top_k leaves, which must be known whole.
    return holds_k | ((has_top_p | has_min_p) & (restrictions.top_k == vocabulary))


def _kept(values: Tensor, restrictions: Restrictions) -> Tensor:
    """Zero where a token may not be drawn. values: (rows, candidates), falling."""
    ranks = torch.arange(values.shape[-1], device=values.device)
    within_k = ranks[None, :] < restrictions.top_k[:, None]
    masses = (values * within_k).cumsum(dim=-1, dtype=torch.float64)
    # Without top_k the whole distribution is meant, whose mass is 1, though only candidates are here.
    totals = torch.where(restrictions.top_k <= values.shape[-1], masses[:, -1], 1.0)
    within_p = masses - values < (restrictions.top_p * totals)[:, None]
    likely = values >= restrictions.min_p[:, None] * values[:, :1]
    return values * (within_k & within_p & likely)
