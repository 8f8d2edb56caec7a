"""What the scheduler asks of the place where K/V lie, whatever its shape: rows of a grid or pages. Knows no torch.

The scheduler alone calls it, between two steps. It changes `slot`, `pages` and `num_cached_tokens` of sequences.

K/V of whole blocks that a sequence has computed are a *known prefix*: another sequence of the same scope that begins
with the same tokens takes them over instead of computing them. Known prefixes live on what running sequences leave of
the budget; the least recently used go first.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from engine.generation.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `num_tokens` columns of row `source` to row `target`."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Between block `block` of the store of known prefixes and the `index`-th block of row `row` of the grid."""

    block: int
    row: int
    index: int


@dataclass(frozen=True, slots=True)
class RowOrders:
    """What must happen to a grid of rows before the pieces of a step run, in the order of these fields.

    block_moves: (from, to) within the store. num_blocks: how large the store becomes then. saves: from rows to the
    store. moves: from row to row. shape: rows and columns that the grid gets. loads: from the store to rows.
    """

    block_moves: list[tuple[int, int]]
    num_blocks: int
    saves: list[BlockCopy]
    moves: list[Copy]
    shape: tuple[int, int]
    loads: list[BlockCopy]


class KvPool(Protocol):
    """num_prefix_lookup_tokens_total: tokens of all sequences at their first admission (`was_admitted` is False).
    num_prefix_hit_tokens_total: those of them that a known prefix spared."""

    num_prefix_lookup_tokens_total: int
    num_prefix_hit_tokens_total: int

    @property
    def num_slots(self) -> int:
        """Sequences that can run at once at most."""

    @property
    def context_tokens(self) -> int: ...

    @property
    def budget_tokens(self) -> int:
        """K/V of so many tokens at most, known prefixes included."""

    def can_hold(self, running: Collection[Sequence], newcomer: Sequence | None = None) -> bool:
        """Whether all of these fit at once with the tokens they have now; known prefixes give way to them."""

    def is_prefix_coming(self, sequence: Sequence) -> bool:
        """Whether an admitted sequence of its scope, of no lower priority, is computing the K/V that `sequence` would
        have to compute next: it pays to admit it later. False as soon as they are known, or will not come."""

    def admit(self, sequence: Sequence) -> None:
        """Give it a place. `num_cached_tokens` becomes what a known prefix of its scope spares, at least one token
        less than it has. `can_hold` was true. (`num_reused_tokens` and `was_admitted` are the scheduler's to set.)"""

    def extend(self, running: Collection[Sequence]) -> None:
        """Room for all tokens that the running sequences have now, before any is admitted in this step. What they
        have computed since becomes known. `can_hold(running)` was true."""

    def release(self, sequence: Sequence) -> None:
        """Its K/V stay as a known prefix while nobody needs the room; nothing of it remains in the sequence."""

    def discard(self, sequence: Sequence) -> None:
        """As `release`, but its K/V are worth nothing, for they may hold a NaN, and nothing it had stays known."""

    def forget(self) -> None:
        """All K/V are gone, those of known prefixes too. Nobody is admitted."""

    def take_orders(self) -> RowOrders | None:
        """Once a step, after the last `admit`: what the runner must do first. None where K/V never move."""
