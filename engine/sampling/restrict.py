"""Which tokens top_k, top_p and min_p leave: tensors in, tensors out; nothing here knows of sequences.

top_k comes first, then top_p of what it leaves, then min_p, as in transformers. Tokens stand in falling order of
weight, of equal weights the first in the vocabulary goes before the others, and what top_k and top_p leave is a
beginning of that order, which a `Cut` ends. It is found in two ways, whose sums in float64 give the same cut:
`find_cuts` sorts few candidates first and waits for the device to know whether they were enough; `find_cuts_unseen`
never waits and has no shape that depends on data: where candidates may not be enough, it halves the range of weights
until the lowest is found. A row's cut does not depend on which other rows there are.

weights, everywhere: (rows, vocabulary) float32, from 0 to 1, which the most probable token of every row has.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_CANDIDATES = 1024
_NUM_CANDIDATES = (64, _MOST_CANDIDATES)  # sorted first; where they do not hold what is left, the whole vocabulary is
_BITS_OF_ONE = 0x3F800000  # as a float32; floats from 0 to 1 are in the order of their bits
_NUM_HALVINGS = 30  # so many leave one of the floats from 0 to 1


@dataclass(frozen=True, slots=True)
class Restrictions:
    """Per row. top_k: int64, off is the size of the vocabulary. top_p: float64, off is 1. min_p: float32, off is 0."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def of(self, rows: Tensor) -> "Restrictions":
        return Restrictions(self.top_k[rows], self.top_p[rows], self.min_p[rows])


@dataclass(frozen=True, slots=True)
class Extent:
    """What the host knows of all rows' restrictions, and which work they need.

    largest_k: of the rows' top_k that are on; 0 if none is. has_p: whether a row's top_p is on. has_p_alone: whether
    it is on in a row whose top_k is off.
    """

    largest_k: int
    has_p: bool
    has_p_alone: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """lowest: (rows,) float32, the smallest weight that is left. num_ties: (rows,) int64, how many tokens that weigh
    as much are left, at least one."""

    lowest: Tensor
    num_ties: Tensor

    def put(self, rows: Tensor, cut: "Cut") -> None:
        self.lowest[rows], self.num_ties[rows] = cut.lowest, cut.num_ties

    def of(self, rows: Tensor) -> "Cut":
        return Cut(self.lowest[rows], self.num_ties[rows])


def find_cuts(weights: Tensor, restrictions: Restrictions) -> Cut:
    """Waits for the device."""
    vocabulary = weights.shape[-1]
    totals = _totals(weights)
    cuts = Cut(torch.empty_like(weights[:, 0]), torch.empty_like(restrictions.top_k))
    left = torch.arange(len(weights), device=weights.device)
    for num_candidates in (*(n for n in _NUM_CANDIDATES if n < vocabulary), vocabulary):
        values, here = _largest(weights[left], num_candidates), restrictions.of(left)
        is_enough = _is_enough(values, here, totals[left], vocabulary)
        by_k = _cut_by_k(values, here.top_k, vocabulary)
        by_p = _cut_by_p(values, here.top_p, _left_by_k(values, by_k, here.top_k, totals[left], vocabulary), vocabulary)
        cuts.put(left[is_enough], _stricter(by_k, by_p).of(is_enough))
        left = left[~is_enough]
        if len(left) == 0:
            break
    return cuts


def find_cuts_unseen(weights: Tensor, restrictions: Restrictions, extent: Extent) -> Cut:
    """Never waits for the device."""
    vocabulary = weights.shape[-1]
    top_k, top_p = restrictions.top_k, restrictions.top_p
    candidates = weights
    if 0 < extent.largest_k <= _MOST_CANDIDATES:
        candidates = _largest(weights, min(extent.largest_k, vocabulary))
        by_k = _cut_by_k(candidates, top_k, vocabulary)
    elif extent.largest_k:
        by_k = _halved_cut_by_k(weights, top_k, vocabulary)
    else:
        by_k = _no_cut(weights, vocabulary)
    bounded = _left_by_k(candidates, by_k, top_k, _totals(weights), vocabulary)
    if extent.has_p_alone or (extent.has_p and extent.largest_k > _MOST_CANDIDATES):
        by_p = _halved_cut_by_p(weights, top_p, bounded, vocabulary)
    elif extent.has_p:
        by_p = _cut_by_p(candidates, top_p, bounded, vocabulary)
    else:
        by_p = _no_cut(weights, vocabulary)
    return _stricter(by_k, by_p)


def remove(weights: Tensor, cut: Cut, min_p: Tensor) -> Tensor:
    """In place: 0 for every token that is not left. Never waits for the device. min_p: (rows,) float32."""
    lowest = cut.lowest[:, None]
    ties = weights == lowest
    ties &= ties.cumsum(dim=-1, dtype=torch.int32) <= cut.num_ties[:, None]
    return weights.masked_fill_(~(ties | (weights > lowest)) | (weights < min_p[:, None]), 0.0)


def remove_few_ties(weights: Tensor, cut: Cut, min_p: Tensor) -> Tensor:
    """`remove` where as a rule no tie is cut, at less work on a CPU. Waits for the device."""
    num_ties = (weights == cut.lowest[:, None]).sum(dim=-1)
    if bool(((num_ties > cut.num_ties) & (cut.lowest > 0)).any()):
        return remove(weights, cut, min_p)
    return weights.masked_fill_(weights < torch.maximum(cut.lowest, min_p)[:, None], 0.0)


def _is_enough(values: Tensor, restrictions: Restrictions, totals: Tensor, vocabulary: int) -> Tensor:
    """Whether no token beyond the candidates is left. values: (rows, candidates), falling."""
    if values.shape[-1] == vocabulary:
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    holds_k = restrictions.top_k <= values.shape[-1]
    holds_p = (_totals(values) >= restrictions.top_p * totals) & (restrictions.top_p < 1)
    holds_min_p = values[:, -1] < restrictions.min_p
    # top_p is a share of what top_k leaves, which must be known whole.
    return holds_k | ((holds_p | holds_min_p) & (restrictions.top_k == vocabulary))


def _cut_by_k(values: Tensor, top_k: Tensor, vocabulary: int) -> Cut:
    """values: (rows, candidates), falling."""
    lowest = values.gather(1, (top_k - 1).clamp(max=values.shape[-1] - 1)[:, None]).squeeze(1)
    return _where(top_k < vocabulary, Cut(lowest, top_k - _num_above(values, lowest)), vocabulary)


def _halved_cut_by_k(weights: Tensor, top_k: Tensor, vocabulary: int) -> Cut:
    lowest = _smallest_left(weights, lambda weight: _num_above(weights, weight) < top_k)
    return _where(top_k < vocabulary, Cut(lowest, top_k - _num_above(weights, lowest)), vocabulary)


def _left_by_k(values: Tensor, by_k: Cut, top_k: Tensor, totals: Tensor, vocabulary: int) -> Tensor:
    """(rows,) float64: the mass that top_k leaves."""
    left = _mass_above(values, by_k.lowest) + by_k.lowest.double() * by_k.num_ties
    return torch.where(top_k < vocabulary, left, totals)


def _cut_by_p(values: Tensor, top_p: Tensor, left_by_k: Tensor, vocabulary: int) -> Cut:
    """values: (rows, candidates), falling."""
    bounds = top_p * left_by_k
    masses = values.cumsum(dim=-1, dtype=torch.float64) - values
    num_left = (masses < bounds[:, None]).sum(dim=-1).clamp_(min=1)
    lowest = values.gather(1, (num_left - 1)[:, None]).squeeze(1)
    return _where(top_p < 1, Cut(lowest, _num_ties(values, lowest, bounds, vocabulary)), vocabulary)


def _halved_cut_by_p(weights: Tensor, top_p: Tensor, left_by_k: Tensor, vocabulary: int) -> Cut:
    bounds = top_p * left_by_k
    lowest = _smallest_left(weights, lambda weight: _mass_above(weights, weight) < bounds)
    return _where(top_p < 1, Cut(lowest, _num_ties(weights, lowest, bounds, vocabulary)), vocabulary)


def _smallest_left(weights: Tensor, is_left: Callable[[Tensor], Tensor]) -> Tensor:
    """The smallest weight for which `is_left` holds, as it then does for every larger one. (rows,) float32."""
    low = torch.zeros(len(weights), dtype=torch.int32, device=weights.device)
    high = torch.full_like(low, _BITS_OF_ONE)
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) >> 1
        left = is_left(middle.view(torch.float32))
        low, high = torch.where(left, low, middle + 1), torch.where(left, middle, high)
    return high.view(torch.float32)


def _num_ties(values: Tensor, lowest: Tensor, bounds: Tensor, vocabulary: int) -> Tensor:
    """How many tokens of the weight `lowest` begin below the bound."""
    rest = bounds - _mass_above(values, lowest)
    return (rest / lowest.double().clamp_(min=1e-300)).ceil_().clamp_(1, vocabulary).long()


def _mass_above(values: Tensor, lowest: Tensor) -> Tensor:
    return torch.where(values > lowest[:, None], values, 0.0).sum(dim=-1, dtype=torch.float64)


def _num_above(values: Tensor, lowest: Tensor) -> Tensor:
    return (values > lowest[:, None]).sum(dim=-1)


def _totals(values: Tensor) -> Tensor:
    return values.sum(dim=-1, dtype=torch.float64)


def _largest(weights: Tensor, number: int) -> Tensor:
    """(rows, number), falling."""
    if number == weights.shape[-1]:
        return weights.sort(dim=-1, descending=True).values
    return weights.topk(number, dim=-1).values


def _stricter(one: Cut, other: Cut) -> Cut:
    ties = torch.where(one.lowest > other.lowest, one.num_ties, other.num_ties)
    ties = torch.where(one.lowest == other.lowest, torch.minimum(one.num_ties, other.num_ties), ties)
    return Cut(torch.maximum(one.lowest, other.lowest), ties)


def _where(is_on: Tensor, cut: Cut, vocabulary: int) -> Cut:
    return Cut(torch.where(is_on, cut.lowest, 0.0), torch.where(is_on, cut.num_ties, vocabulary))


def _no_cut(weights: Tensor, vocabulary: int) -> Cut:
    lowest = torch.zeros_like(weights[:, 0])
    return Cut(lowest, torch.full_like(lowest, vocabulary, dtype=torch.int64))
