"""Lays the pieces of a step side by side in one row of tokens, without padding, and knows which may see which.

For the native kernels the row is cut into tiles of a few tokens, of whatever length their sequences are. For torch,
pieces of one token (sequences that decode) form a block that attends in one go over the first rows of the grid; longer
pieces (prompts), and single tokens of sequences much longer than the rest, attend each for itself.
"""

from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from engine.generation.scheduler import Piece
from engine.generation.sequence import Sequence
from engine.kv.grid import KvGrid
from engine.native.kernels import TILE_TOKENS

_LONG_ROW_FACTOR = 4  # beside rows of this many times fewer columns, a long row is cheaper on its own


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `begin` to `end` of the packed row are those from position `start` on of the sequence in `slot`."""

    begin: int
    end: int
    slot: int
    start: int

    @property
    def num_columns(self) -> int:
        return self.start + self.end - self.begin


@dataclass(slots=True)
class Block:
    """The first `num_tokens` tokens of the packed row: one each of as many sequences.

    rows: (num_tokens,) int64, their rows in the grid, or None where these are 0, 1, 2, …
    visible: (num_rows,) int64, the last column that each of the first `num_rows` rows of the grid may see.
    """

    num_tokens: int
    num_rows: int
    num_columns: int
    rows: Tensor | None
    visible: Tensor


@dataclass(slots=True)
class Packed:
    """One forward pass. input_ids, position_ids: (1, tokens). cells: (tokens,). logits_at: (samples,). All int64.

    num_in_block: so many of the spans, the first, are single tokens that make up the block.
    """

    grid: KvGrid
    input_ids: Tensor
    position_ids: Tensor
    cells: Tensor
    logits_at: Tensor
    samples: list[Sequence]
    spans: list[Span]
    num_in_block: int
    _block: Block | None = None
    _tiles: Tensor | None = None
    _last_tiles: Tensor | None = None
    _masks: dict[tuple[Span | None, int | None], Tensor] = field(default_factory=dict)

    @property
    def block(self) -> Block | None:
        if self._block is None and self.num_in_block:
            self._block = _block(self.spans[: self.num_in_block], self.cells.device)
        return self._block

    @property
    def tiles(self) -> Tensor:
        """As the attention kernel takes them."""
        if self._tiles is None:
            self._tiles = _tiles(self.spans)
        return self._tiles

    @property
    def last_tiles(self) -> Tensor:
        """The same of nothing but the positions in `logits_at`, each by itself."""
        if self._last_tiles is None:
            at, one = self.logits_at, torch.ones_like(self.logits_at)
            rows = self.cells[at] // self.grid.shape[1]
            self._last_tiles = torch.stack((at, one, rows, self.position_ids[0, at]), dim=1)
        return self._last_tiles

    def block_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(num_rows, 1, 1, num_columns), additive. Made once per step, not once per layer."""
        if (None, window) not in self._masks:
            block = self.block
            assert block is not None
            columns = torch.arange(block.num_columns, device=self.cells.device)
            allowed = _allowed(block.visible[:, None], columns[None, :], window)
            self._masks[None, window] = _additive(allowed, dtype)[:, None, None, :]
        return self._masks[None, window]

    def span_mask(self, span: Span, window: int | None, dtype: torch.dtype) -> Tensor:
        """(tokens of the span, columns from `first_column` on), additive."""
        if (span, window) not in self._masks:
            device = self.cells.device
            positions = torch.arange(span.start, span.num_columns, device=device)
            columns = torch.arange(first_column(span, window), span.num_columns, device=device)
            self._masks[span, window] = _additive(_allowed(positions[:, None], columns[None, :], window), dtype)
        return self._masks[span, window]


def first_column(span: Span, window: int | None) -> int:
    """Columns before it lie outside the sliding window of every token of the span."""
    return 0 if window is None else max(0, span.start + 1 - window)


def pack(pieces: list[Piece], grid: KvGrid, device: torch.device) -> Packed:
    singles, others = _split(pieces)
    ordered = [*singles, *others]
    ids: list[int] = []
    positions: list[int] = []
    cells: list[int] = []
    spans: list[Span] = []
    last: list[int] = []
    for piece in ordered:
        slot, start = _place(piece)
        begin, stop = len(ids), start + piece.num_tokens
        ids += piece.sequence.token_ids[start:stop]
        positions += range(start, stop)
        cells += range(slot * grid.shape[1] + start, slot * grid.shape[1] + stop)
        spans.append(Span(begin, len(ids), slot, start))
        if piece.is_last:
            last.append(len(ids) - 1)
    table = torch.tensor([ids, positions, cells], dtype=torch.int64).to(device)  # one transfer
    return Packed(
        grid=grid,
        input_ids=table[0:1],
        position_ids=table[1:2],
        cells=table[2],
        logits_at=torch.tensor(last, dtype=torch.int64, device=device),
        samples=[piece.sequence for piece in ordered if piece.is_last],
        spans=spans,
        num_in_block=len(singles),
    )


def _split(pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Into the block, by slot, and what attends for itself."""
    single = [piece for piece in pieces if piece.num_tokens == 1]
    others = [piece for piece in pieces if piece.num_tokens > 1]
    limit = _LONG_ROW_FACTOR * median([_place(piece)[1] for piece in single] or [0]) + _LONG_ROW_FACTOR
    block = [piece for piece in single if _place(piece)[1] <= limit]
    long = [piece for piece in single if _place(piece)[1] > limit]
    return sorted(block, key=_place), long + others


def _place(piece: Piece) -> tuple[int, int]:
    slot = piece.sequence.slot
    assert slot is not None
    return slot, piece.sequence.num_cached_tokens


def _tiles(spans: list[Span]) -> Tensor:
    """The most work first, so that no thread is left with a long tile while the others have nothing."""
    tiles = [
        (begin, min(TILE_TOKENS, span.end - begin), span.slot, span.start + begin - span.begin)
        for span in spans
        for begin in range(span.begin, span.end, TILE_TOKENS)
    ]
    tiles.sort(key=lambda tile: -tile[1] * (tile[3] + tile[1]))
    return torch.tensor(tiles, dtype=torch.int64)


def _block(singles: list[Span], device: torch.device) -> Block:
    slots = [span.slot for span in singles]
    num_rows = slots[-1] + 1
    visible = [0] * num_rows  # a row between them that does not decode sees one column: no softmax over nothing
    for span in singles:
        visible[span.slot] = span.start
    is_dense = num_rows == len(singles)
    return Block(
        num_tokens=len(singles),
        num_rows=num_rows,
        num_columns=max(visible) + 1,
        rows=None if is_dense else torch.tensor(slots, dtype=torch.int64, device=device),
        visible=torch.tensor(visible, dtype=torch.int64, device=device),
    )


def _allowed(positions: Tensor, columns: Tensor, window: int | None) -> Tensor:
    causal = columns <= positions
    return causal if window is None else causal & (columns > positions - window)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))
