"""Which rows of the KV grid are taken, how large the grid is, and what is known beside it. Knows no torch.

The grid has a row per running sequence and a column per token position. It grows by doubling, so that it is copied
seldom. Taken rows are kept dense from 0 on, because attention over a dense block of rows needs no copy of its K/V.

Known prefixes lie in a store of their own, on what the grid leaves of `budget_tokens`; as it grows, the store shrinks.
A sequence's blocks are copied there when it ends, and sooner where another sequence that is admitted begins with them;
so a sequence whose beginning nobody shares costs one copy of its K/V.
"""

import heapq
from collections.abc import Collection, Iterable

from engine.generation.sequence import Sequence
from engine.kv.pool import BlockCopy, Copy, RowOrders
from engine.kv.prefix import BLOCK_TOKENS, Block, PrefixIndex

SMALLEST_WIDTH = 256
_ROOMY_PARTS = 4  # of the budget: a smaller grid stays as it is when nobody is left in it


class SlotPool:
    """reuses_prefixes: whether anything is stored at all."""

    def __init__(
        self, num_slots: int, budget_tokens: int, context_tokens: int, *, reuses_prefixes: bool = True
    ) -> None:
        if context_tokens > budget_tokens:
            raise ValueError(f"a context of {context_tokens} tokens does not fit into a budget of {budget_tokens}")
        self.num_slots = num_slots
        self.budget_tokens = budget_tokens
        self.context_tokens = context_tokens
        self.num_prefix_lookup_tokens_total = 0
        self.num_prefix_hit_tokens_total = 0
        self._reuses_prefixes = reuses_prefixes
        self._free = list(range(num_slots))  # a heap
        self._rows: dict[int, Sequence] = {}
        self._shape = (0, 0)
        self._prefixes = PrefixIndex()
        self._loads: dict[Sequence, list[Block]] = {}
        self._resize_store()

    @property
    def num_taken(self) -> int:
        return len(self._rows)

    @property
    def num_stored_tokens(self) -> int:
        """Of known prefixes."""
        return self._prefixes.num_stored * BLOCK_TOKENS

    def width(self, num_tokens: int) -> int:
        """Columns of a grid whose longest sequence has `num_tokens`."""
        width = SMALLEST_WIDTH
        while width < num_tokens:
            width *= 2
        return min(width, self.context_tokens)

    def can_hold(self, running: Collection[Sequence], newcomer: Sequence | None = None) -> bool:
        num_rows = len(running) + (newcomer is not None)
        longest = _longest(running if newcomer is None else (*running, newcomer))
        return num_rows <= self.num_slots and num_rows * self.width(longest) <= self._grid_room

    def is_prefix_coming(self, sequence: Sequence) -> bool:
        return self._prefixes.is_coming(sequence)

    def admit(self, sequence: Sequence) -> None:
        sequence.slot = heapq.heappop(self._free)
        self._rows[sequence.slot] = sequence
        self._reshape()
        found = self._prefixes.join(sequence)
        sequence.num_cached_tokens = len(found) * BLOCK_TOKENS
        if found:
            self._loads[sequence] = found
        if not sequence.was_admitted:
            self.num_prefix_lookup_tokens_total += len(sequence.token_ids)
            self.num_prefix_hit_tokens_total += sequence.num_cached_tokens

    def extend(self, running: Collection[Sequence]) -> None:
        """What is known is found out when it is wanted, or when a sequence leaves."""
        assert len(running) == len(self._rows)
        self._reshape()

    def release(self, sequence: Sequence) -> None:
        self._prefixes.leave(sequence)
        self._vacate(sequence)

    def discard(self, sequence: Sequence) -> None:
        self._prefixes.discard(sequence)
        self._vacate(sequence)

    def forget(self) -> None:
        self._prefixes.forget()

    def take_orders(self) -> RowOrders:
        moves = self._close_gaps()
        loads = [
            BlockCopy(block.place, _slot(sequence), block.index)
            for sequence, blocks in self._loads.items()
            for block in blocks
        ]
        self._loads.clear()
        store = self._prefixes.take_orders()
        saves = [BlockCopy(block.place, row, block.index) for block, row in store.saves]
        return RowOrders(store.moves, store.size, saves, moves, self._shape, loads)

    @property
    def _grid_room(self) -> int:
        """Cells that the grid may have; what is about to be loaded cannot give way."""
        return self.budget_tokens - self._prefixes.num_pinned * BLOCK_TOKENS

    def _reshape(self) -> None:
        """As the grid is, if that does; else roomier than need be, while there is room."""
        num_rows, columns = len(self._rows), self._shape[1]
        width = self.width(_longest(self._rows.values()))
        if num_rows == 0 or (num_rows <= self._shape[0] and width <= columns):
            return
        if num_rows * columns <= self._grid_room:
            width = max(width, columns)
        roomy = min(self.num_slots, 1 << (num_rows - 1).bit_length(), self._grid_room // width)
        self._shape = (max(num_rows, roomy), width)
        self._resize_store()

    def _resize_store(self) -> None:
        left = self.budget_tokens - self._shape[0] * self._shape[1]
        self._prefixes.resize(left // BLOCK_TOKENS if self._reuses_prefixes else 0)

    def _vacate(self, sequence: Sequence) -> None:
        self._loads.pop(sequence, None)
        del self._rows[_slot(sequence)]
        heapq.heappush(self._free, _slot(sequence))
        sequence.slot = None
        sequence.num_cached_tokens = 0
        if not self._rows and self._shape[0] * self._shape[1] > self.budget_tokens // _ROOMY_PARTS:
            self._shape = (0, 0)  # after a burst the room belongs to known prefixes again
            self._resize_store()

    def _close_gaps(self) -> list[Copy]:
        """The last row comes into the first gap, until there is none."""
        moves = []
        while self._rows and self._free and self._free[0] < (last := max(self._rows)):
            sequence = self._rows.pop(last)
            target = heapq.heapreplace(self._free, last)
            self._rows[target] = sequence
            sequence.slot = target
            if sequence.num_cached_tokens and sequence not in self._loads:
                moves.append(Copy(last, target, sequence.num_cached_tokens))
        return moves


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot


def _longest(sequences: Iterable[Sequence]) -> int:
    return max((len(sequence.token_ids) for sequence in sequences), default=0)
