"""Drawing a token from a distribution: tensors in, tokens out; nothing here knows of sequences.

A token is found by inverting the cumulative distribution at a given number in [0, 1), so that the number decides alone.
No row's result depends on which other rows there are. All but `draw_restricted` never wait for the device and have no
shape that depends on data.
"""

import torch
from torch import Tensor

from engine.sampling.restrict import Extent, Restrictions, find_cuts, find_cuts_unseen, remove, remove_few_ties

GREEDY_BELOW = 1e-5  # a smaller temperature overflows float32 and means the same
_BLOCK = 256


def plain_tokens(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of rows that use a temperature at most, those that `sampler.sample` gives them, and which rows are finite.

    logits: (rows, vocabulary). temperatures: (rows,) float32, 0 is greedy. numbers: (rows,) float64.
    """
    best, greedy = logits.max(dim=-1)
    tokens = invert(_weights(logits, best, temperatures), numbers)
    return torch.where(temperatures < GREEDY_BELOW, greedy, tokens), best.isfinite()


def restricted_tokens(
    logits: Tensor, temperatures: Tensor, numbers: Tensor, restrictions: Restrictions, extent: Extent
) -> tuple[Tensor, Tensor]:
    """`plain_tokens` for rows of which some have a top_k, top_p or min_p."""
    best, greedy = logits.max(dim=-1)
    weights = _weights(logits, best, temperatures)
    tokens = invert(remove(weights, find_cuts_unseen(weights, restrictions, extent), restrictions.min_p), numbers)
    return torch.where(temperatures < GREEDY_BELOW, greedy, tokens), best.isfinite()


def _weights(logits: Tensor, best: Tensor, temperatures: Tensor) -> Tensor:
    """(rows, vocabulary) float32, of which the best token's is 1. Temperatures that are greedy count as 1."""
    temperatures = temperatures.masked_fill(temperatures < GREEDY_BELOW, 1.0)
    return scaled(logits.to(torch.float32, copy=True), best.float(), temperatures).exp_()


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
    """top_k, then top_p of what is left, then min_p. logits: as for `draw`. Waits for the device."""
    weights = logits.exp_()
    return invert(remove_few_ties(weights, find_cuts(weights, restrictions), restrictions.min_p), numbers)


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
