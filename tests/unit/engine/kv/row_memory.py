"""A grid of rows and a store of blocks made of lists: carries out the orders of a `SlotPool` and notices what is wrong.

A cell holds a digest of the scope and of all tokens up to its own, as K/V do; `None` is a cell that nobody wrote.
"""

from engine.generation.scheduler import Step
from engine.generation.sequence import Sequence
from engine.kv.pool import BlockCopy, RowOrders
from engine.kv.prefix import BLOCK_TOKENS

Cell = int | None
NUM_TOKENS = 5  # of the vocabulary


def digest(before: int, token: int) -> int:
    return hash((before, token))


def digests(scope: str, token_ids: list[int]) -> list[int]:
    cell, cells = hash(scope), []
    for token in token_ids:
        cell = digest(cell, token)
        cells.append(cell)
    return cells


def next_token(cell: int) -> int:
    """What the model of this world answers: it follows from all tokens before it, and from the scope."""
    return cell % NUM_TOKENS


def answer(scope: str, prompt: list[int], num_tokens: int) -> list[int]:
    """To this prompt, alone and without a pause."""
    cell, tokens = digests(scope, prompt)[-1], list[int]()
    for _ in range(num_tokens):
        tokens.append(next_token(cell))
        cell = digest(cell, tokens[-1])
    return tokens


class RowMemory:
    def __init__(self, budget_tokens: int) -> None:
        self._budget_tokens = budget_tokens
        self.rows: list[list[Cell]] = []
        self.blocks: list[list[Cell]] = []

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.rows)) + len(self.blocks) * BLOCK_TOKENS

    def carry_out(self, orders: RowOrders) -> None:
        for source, target in orders.block_moves:
            self.blocks[target] = list(self.blocks[source])
        new: list[list[Cell]] = [[None] * BLOCK_TOKENS for _ in range(orders.num_blocks - len(self.blocks))]
        self.blocks = [*self.blocks, *new][: orders.num_blocks]
        for copy in orders.saves:
            self.blocks[copy.block] = self._read(copy)
        for move in orders.moves:
            self.rows[move.target][: move.num_tokens] = self.rows[move.source][: move.num_tokens]
        self._resize(orders.shape)
        for copy in orders.loads:
            assert None not in self.blocks[copy.block], "what is loaded was saved"
            start = copy.index * BLOCK_TOKENS
            self.rows[copy.row][start : start + BLOCK_TOKENS] = self.blocks[copy.block]
        assert self.num_tokens <= self._budget_tokens

    def compute(self, step: Step) -> None:
        """Like a model: it reads the K/V of its row and writes those of the new tokens behind them."""
        for piece in step.pieces:
            sequence = piece.sequence
            assert sequence.slot is not None
            row, start = self.rows[sequence.slot], sequence.num_cached_tokens
            stop = start + piece.num_tokens
            cell = row[start - 1] if start else hash(sequence.scope)
            for place in range(start, stop):
                assert cell is not None
                row[place] = cell = digest(cell, sequence.token_ids[place])
            sequence.num_cached_tokens = stop
            if sequence.num_uncached_tokens == 0:
                assert cell is not None
                sequence.token_ids.append(next_token(cell))

    def check(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        cells = self.rows[sequence.slot][: sequence.num_cached_tokens]
        expected = digests(sequence.scope, sequence.token_ids)[: sequence.num_cached_tokens]
        assert cells == expected, "K/V are those of its own tokens and scope"

    def _read(self, copy: BlockCopy) -> list[Cell]:
        start = copy.index * BLOCK_TOKENS
        cells = self.rows[copy.row][start : start + BLOCK_TOKENS]
        assert len(cells) == BLOCK_TOKENS
        assert None not in cells, "what is saved was computed"
        return cells

    def _resize(self, shape: tuple[int, int]) -> None:
        num_rows, num_columns = shape
        rows = [*self.rows, *([] for _ in range(num_rows - len(self.rows)))][:num_rows]
        self.rows = [[*row, *[None] * (num_columns - len(row))][:num_columns] for row in rows]
