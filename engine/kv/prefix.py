"""Which beginnings of sequences are known, block by block, and where their K/V are kept. Knows no torch.

A tree per scope: a block is `BLOCK_TOKENS` tokens behind those of its parent, compared token by token, so that no two
prompts can be taken for each other. A block's K/V lie in the rows of the running sequences that begin with it (its
holders) and, once another one wants them or a holder leaves, in a place of the store.

The store holds `capacity` blocks. The least recently used one gives way first, and never before those that follow it:
what is kept of a sequence is always its beginning.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.generation.sequence import PENDING, Sequence

BLOCK_TOKENS = 32
_SMALLEST_STORE = 64


@dataclass(slots=True, eq=False)
class Block:
    """key: its tokens; a root's is its scope. index: how many blocks precede it; a root's is -1. place: in the store,
    -1 is nowhere.

    is_proven: a sequence that begins with it was answered without a NaN. is_dead: its K/V are worth nothing.
    """

    parent: "Block | None"
    key: tuple[int, ...] | str
    index: int
    place: int = -1
    is_proven: bool = False
    is_dead: bool = False
    holders: list[Sequence] = field(default_factory=list)
    children: "dict[tuple[int, ...] | str, Block]" = field(default_factory=dict)

    def is_computed_by(self, holder: Sequence) -> bool:
        return holder.num_cached_tokens >= (self.index + 1) * BLOCK_TOKENS

    @property
    def is_known(self) -> bool:
        return self.place >= 0 or any(map(self.is_computed_by, self.holders))


@dataclass(frozen=True, slots=True)
class StoreOrders:
    """moves: (from, to), before the store becomes `size` blocks large. saves: (block, row that holds it), after."""

    moves: list[tuple[int, int]]
    size: int
    saves: list[tuple[Block, int]]


class PrefixIndex:
    """A block that a sequence is about to load is pinned until the next `take_orders`."""

    def __init__(self) -> None:
        self._capacity = 0
        self._size = 0
        self._trunk = Block(None, "", -2)  # its children are the scopes
        self._chains: dict[Sequence, list[Block]] = {}  # what an admitted sequence holds
        self._stored: OrderedDict[Block, None] = OrderedDict()  # the one to give way first in front
        self._free: list[int] = []  # a heap of places
        self._pinned: set[Block] = set()
        self._saves: dict[Block, int] = {}
        self._moves: dict[Block, int] = {}  # where it was at the last orders

    @property
    def num_pinned(self) -> int:
        return len(self._pinned)

    @property
    def num_stored(self) -> int:
        return len(self._stored)

    def is_coming(self, sequence: Sequence) -> bool:
        """Whether a holder of no lower priority has yet to compute the first block that is not known."""
        num_blocks = min((len(sequence.token_ids) - 1) // BLOCK_TOKENS, self._capacity)
        unknown = next((block for block in self._walk(sequence, num_blocks) if not block.is_known), None)
        return unknown is not None and any(holder.priority >= sequence.priority for holder in unknown.holders)

    def join(self, sequence: Sequence) -> list[Block]:
        """What an admitted sequence need not compute: the known blocks that it begins with, stored and pinned.

        It is left at least a token to compute. It holds the blocks of all its tokens from now on.
        """
        self._chains[sequence] = []
        chain = self._hold(sequence, len(sequence.token_ids))
        known = [block for block in chain[: (len(sequence.token_ids) - 1) // BLOCK_TOKENS] if block.is_known]
        found = self._keep(known)
        self._pinned.update(found)
        return found

    def leave(self, sequence: Sequence) -> None:
        """What it has computed is stored, as far as there is room."""
        chain = self._hold(sequence, min(sequence.num_cached_tokens, len(sequence.token_ids)))
        computed = [block for block in chain if block.is_computed_by(sequence) and not block.is_dead]
        for block in computed:
            block.is_proven |= sequence.num_answer_tokens > 0
        self._keep(computed)
        self._let_go(sequence)

    def discard(self, sequence: Sequence) -> None:
        """What no other sequence has proven of it is worth nothing, nor is what follows that."""
        unproven = next((block for block in self._chains[sequence] if not block.is_proven), None)
        if unproven is not None and not unproven.is_dead:
            self._kill(unproven)
        self._let_go(sequence)

    def forget(self) -> None:
        for root in list(self._trunk.children.values()):
            self._kill(root)

    def resize(self, capacity: int) -> None:
        """Make room for so many blocks, no fewer than are pinned."""
        self._capacity = capacity
        while len(self._stored) > capacity:
            oldest = self._oldest()
            assert oldest is not None
            self._evict(oldest)
        if self._size > capacity:
            self._size = capacity
            self._free = [place for place in self._free if place < capacity]
            heapq.heapify(self._free)
            for block in [block for block in self._stored if block.place >= capacity]:
                self._move(block)

    def take_orders(self) -> StoreOrders:
        moves = [(source, block.place) for block, source in self._moves.items()]
        orders = StoreOrders(moves, self._size, list(self._saves.items()))
        self._moves.clear()
        self._saves.clear()
        self._pinned.clear()
        return orders

    def _walk(self, sequence: Sequence, num_blocks: int) -> Iterator[Block]:
        """The blocks that there are of its tokens, from the first on."""
        block = self._trunk.children.get(sequence.scope)
        for index in range(num_blocks if block is not None else 0):
            block = block.children.get(_key(sequence, index)) if block is not None else None
            if block is None:
                return
            yield block

    def _hold(self, sequence: Sequence, num_tokens: int) -> list[Block]:
        """All blocks that it holds, now that it holds those of its first `num_tokens` tokens, pending ones apart."""
        chain = self._chains[sequence]
        for index in range(len(chain), num_tokens // BLOCK_TOKENS):
            key = _key(sequence, index)
            if key[-1] == PENDING:
                break
            block = self._child(chain[-1] if chain else self._child(self._trunk, sequence.scope), key)
            block.holders.append(sequence)
            chain.append(block)
        return chain

    def _child(self, parent: Block, key: tuple[int, ...] | str) -> Block:
        block = parent.children.get(key)
        if block is None:
            block = parent.children[key] = Block(parent, key, parent.index + 1, is_dead=parent.is_dead)
        return block

    def _keep(self, blocks: list[Block]) -> list[Block]:
        """Store known blocks, a beginning, as the most recently used; those for which there was room."""
        self._touch([block for block in blocks if block.place >= 0])
        kept, chosen = [], set(blocks)
        for block in blocks:
            if block.place < 0 and not self._store(block, chosen):
                break
            kept.append(block)
        self._touch(kept)
        return kept

    def _touch(self, blocks: list[Block]) -> None:
        for block in reversed(blocks):
            self._stored.move_to_end(block)

    def _store(self, block: Block, chosen: set[Block]) -> bool:
        """False where the room is taken by the chosen and the pinned."""
        if not self._free and self._size < self._capacity:
            size = min(self._capacity, max(_SMALLEST_STORE, 2 * self._size))
            self._free = list(range(self._size, size))
            self._size = size
        if not self._free:
            oldest = self._oldest()
            if oldest is None or oldest in chosen:
                return False
            self._evict(oldest)
        block.place = heapq.heappop(self._free)
        self._stored[block] = None
        self._saves[block] = _row(block)
        return True

    def _oldest(self) -> Block | None:
        """The least recently used one that is not pinned: what is about to be loaded may be older than what others have
        just left."""
        return next((block for block in self._stored if block not in self._pinned), None)

    def _evict(self, block: Block) -> None:
        self._unstore(block)
        self._drop(block)

    def _unstore(self, block: Block) -> None:
        del self._stored[block]
        heapq.heappush(self._free, block.place)
        block.place = -1
        self._saves.pop(block, None)
        self._moves.pop(block, None)

    def _move(self, block: Block) -> None:
        if block not in self._saves:
            self._moves.setdefault(block, block.place)
        block.place = heapq.heappop(self._free)

    def _let_go(self, sequence: Sequence) -> None:
        for block in reversed(self._chains.pop(sequence)):
            block.holders.remove(sequence)
            self._drop(block)

    def _drop(self, block: Block) -> None:
        """Out of the tree with it, unless somebody has its K/V; with its scope, if it was the last one there."""
        if block.parent is None or block.is_dead or block.holders or block.place >= 0 or block.children:
            return
        del block.parent.children[block.key]
        if block.index == 0:
            self._drop(block.parent)

    def _kill(self, block: Block) -> None:
        """Take it out of the tree with all that follows it."""
        assert block.parent is not None
        del block.parent.children[block.key]
        if block.index == 0:
            self._drop(block.parent)
        doomed = [block]
        while doomed:
            block = doomed.pop()
            block.is_dead = True
            doomed += block.children.values()
            if block.place >= 0:
                self._unstore(block)


def _key(sequence: Sequence, index: int) -> tuple[int, ...]:
    return tuple(sequence.token_ids[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])


def _row(block: Block) -> int:
    """Of a holder that has computed it."""
    row = next(filter(block.is_computed_by, block.holders)).slot
    assert row is not None
    return row
