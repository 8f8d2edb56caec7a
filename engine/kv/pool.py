"""What the scheduler asks of the place where K/V lie, whatever its shape: rows of a grid or pages. Knows no torch.

The scheduler alone calls it, between two steps. It changes `slot`, `pages` and `num_cached_tokens` of sequences.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from engine.generation.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Copy:
    """K/V of the first `num_tokens` places, or of one page: from `source` to `target`, before the step begins."""

    source: int
    target: int
    num_tokens: int


class KvPool(Protocol):
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

    def admit(self, sequence: Sequence) -> None:
        """Give it a place. `num_cached_tokens` becomes what a known prefix of its scope spares, at least one token
        less than it has. `can_hold` was true."""

    def extend(self, running: Collection[Sequence]) -> None:
        """Room for all tokens that the running sequences have now. `can_hold(running)` was true."""

    def release(self, sequence: Sequence) -> None:
        """Its K/V stay as a known prefix while nobody needs the room; nothing of it remains in the sequence."""

    def discard(self, sequence: Sequence) -> None:
        """As `release`, but its K/V are worth nothing: they may hold a NaN."""
