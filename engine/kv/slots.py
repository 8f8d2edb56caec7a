"""Which rows of the KV grid are taken, and how large the grid may become. Knows no torch.

The grid has a row per running sequence and a column per token position. It grows by doubling, so that it is copied
seldom, and never beyond `budget_tokens` cells. Taken rows are kept dense from 0 on (`next_move`), because attention
over a dense block of rows needs no copy of its K/V.
"""

import heapq
from dataclasses import dataclass

SMALLEST_WIDTH = 256


@dataclass(frozen=True, slots=True)
class Move:
    """Copy the first `num_tokens` columns of row `source` to row `target`."""

    source: int
    target: int
    num_tokens: int


class SlotPool:
    def __init__(self, num_slots: int, budget_tokens: int, context_tokens: int) -> None:
        if context_tokens > budget_tokens:
            raise ValueError(f"a context of {context_tokens} tokens does not fit into a budget of {budget_tokens}")
        self.num_slots = num_slots
        self.budget_tokens = budget_tokens
        self.context_tokens = context_tokens
        self._free = list(range(num_slots))  # a heap
        self._taken: set[int] = set()

    @property
    def num_taken(self) -> int:
        return len(self._taken)

    def width(self, num_tokens: int) -> int:
        """Columns of a grid whose longest sequence has `num_tokens`."""
        width = SMALLEST_WIDTH
        while width < num_tokens:
            width *= 2
        return min(width, self.context_tokens)

    def can_hold(self, num_rows: int, num_tokens: int) -> bool:
        """Whether `num_rows` sequences, the longest of `num_tokens`, fit at the same time."""
        return num_rows <= self.num_slots and num_rows * self.width(num_tokens) <= self.budget_tokens

    def grid_shape(self, num_rows: int, num_tokens: int, current: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of a grid that holds this much: `current` if that does, else a roomier one in the budget."""
        rows, columns = current
        width = self.width(num_tokens)
        if num_rows <= rows and width <= columns:
            return current
        if num_rows * max(width, columns) <= self.budget_tokens:
            width = max(width, columns)
        roomy = min(self.num_slots, 1 << (num_rows - 1).bit_length(), self.budget_tokens // width)
        return max(num_rows, roomy), width

    def allocate(self) -> int:
        slot = heapq.heappop(self._free)
        self._taken.add(slot)
        return slot

    def release(self, slot: int) -> None:
        self._taken.remove(slot)
        heapq.heappush(self._free, slot)

    def next_move(self) -> tuple[int, int] | None:
        """The last taken row and the first free one before it; None where the rows are dense."""
        if not self._taken or not self._free:
            return None
        last = max(self._taken)
        return (last, self._free[0]) if self._free[0] < last else None
