"""From logits to tokens, for all rows at once and each by its own parameters.

A row's random number depends on its seed and on how many tokens it has, on nothing else: the same seed gives the same
tokens whatever else is in the batch, and after a preemption too. The token is found by inverting the cumulative
distribution. top_k is applied before top_p, as transformers does.
"""

import torch
from torch import Tensor

from engine.generation.sequence import Sequence

_GREEDY_BELOW = 1e-5  # a smaller temperature overflows float32 and means the same
_MASK_64 = (1 << 64) - 1
_NUM_CANDIDATES = 1024  # sorted first; where they do not hold top_p of the mass, the whole vocabulary is


def sample(logits: Tensor, sequences: list[Sequence]) -> list[int | None]:
    """logits: (rows, vocabulary). One token per row; None where the row holds a NaN or an infinity."""
    logits = logits.float()
    best, tokens = logits.max(dim=-1)  # max propagates NaN
    drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature >= _GREEDY_BELOW]
    plain = [row for row in drawn if not _is_restricted(sequences[row])]
    restricted = [row for row in drawn if _is_restricted(sequences[row])]
    for rows, draw in ((plain, _draw_plain), (restricted, _draw_restricted)):
        if rows:
            index = torch.tensor(rows, device=logits.device)
            scaled = _scale(logits[index], best[index], [sequences[row] for row in rows])
            tokens[index] = draw(scaled, [sequences[row] for row in rows])
    is_finite = best.isfinite().tolist()
    return [token if fine else None for token, fine in zip(tokens.tolist(), is_finite, strict=True)]


def uniform(seed: int, counter: int) -> float:
    """In [0, 1), a multiple of 2**-32: the SplitMix64 generator (Steele et al. 2014) at step `counter`."""
    state = (seed * 0xD1342543DE82EF95 + (counter + 1) * 0x9E3779B97F4A7C15) & _MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return ((state ^ (state >> 31)) >> 32) / 2**32


def _is_restricted(sequence: Sequence) -> bool:
    return sequence.sampling.top_p < 1 or sequence.sampling.top_k > 0


def _scale(logits: Tensor, best: Tensor, sequences: list[Sequence]) -> Tensor:
    temperatures = torch.tensor([sequence.sampling.temperature for sequence in sequences], device=logits.device)
    # A row that is not finite fails anyway; zeros keep it from disturbing the search of the others.
    return ((logits - best[:, None]) / temperatures[:, None]).nan_to_num_(nan=0.0, posinf=0.0, neginf=-torch.inf)


def _draw_plain(scaled: Tensor, sequences: list[Sequence]) -> Tensor:
    return _invert(scaled.softmax(dim=-1), sequences)


def _draw_restricted(scaled: Tensor, sequences: list[Sequence]) -> Tensor:
    probabilities = scaled.softmax(dim=-1)
    vocabulary = scaled.shape[-1]
    top_k = [min(sequence.sampling.top_k or vocabulary, vocabulary) for sequence in sequences]
    num_candidates = min(vocabulary, max(_NUM_CANDIDATES, *(k for k in top_k if k < vocabulary), 0))
    values, order = probabilities.topk(num_candidates, dim=-1)
    if not _are_enough(values, top_k, sequences):
        values, order = probabilities.sort(dim=-1, descending=True)
    keep = _kept(values, torch.tensor(top_k, device=scaled.device), sequences)
    chosen = _invert(values * keep, sequences)
    return order.gather(1, chosen[:, None]).squeeze(1)


def _are_enough(values: Tensor, top_k: list[int], sequences: list[Sequence]) -> bool:
    masses = values.sum(dim=-1, dtype=torch.float64).tolist()
    return all(
        k <= values.shape[-1] or mass >= sequence.sampling.top_p
        for k, mass, sequence in zip(top_k, masses, sequences, strict=True)
    )


def _kept(values: Tensor, top_k: Tensor, sequences: list[Sequence]) -> Tensor:
    """values: (rows, candidates), falling. The smallest head that holds top_p of what top_k leaves."""
    ranks = torch.arange(values.shape[-1], device=values.device)
    within_k = ranks[None, :] < top_k[:, None]
    top_p = torch.tensor([sequence.sampling.top_p for sequence in sequences], device=values.device)
    masses = (values * within_k).cumsum(dim=-1, dtype=torch.float64)
    # Without top_k the whole distribution is meant, whose mass is 1, though only candidates are here.
    totals = torch.where(top_k <= values.shape[-1], masses[:, -1], torch.ones_like(masses[:, -1]))
    before = masses - values
    return within_k & (before < top_p[:, None] * totals[:, None])


def _invert(weights: Tensor, sequences: list[Sequence]) -> Tensor:
    """(rows,) int64: the index at which the cumulative weight passes the row's random number."""
    numbers = [uniform(sequence.seed, sequence.num_answer_tokens) for sequence in sequences]
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    targets = torch.tensor(numbers, dtype=torch.float64, device=weights.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp_(max=weights.shape[-1] - 1)
