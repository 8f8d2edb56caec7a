"""What one forward pass tells its attention: where the new K/V go, and which K/V each query may see.

A step has two passes. In a `DecodeBatch` every sequence has one query, and all it says lies on the device, in buffers
that keep their addresses. In a `PromptBatch` pieces of prompts lie side by side without padding, after each other in
one row of tokens; it is made anew for every step. A query sees its sequence's K/V up to its own position.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.generation.scheduler import Piece
from engine.paged.rows import Integers, RowTable
from engine.paged.storage import PagedStorage

QUERIES_PER_BLOCK = 64
"""How many queries of one sequence a program of the prompt kernel takes."""


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """cells, rows, lengths: (batch,) int64. page_tables: (rows, pages a sequence may have) int32.

    cells: page * page_size + place in the page. lengths: K/V that the query of a row sees, its own included.
    num_splits: into how many parts a long sequence is cut, so that few sequences fill the device too.
    """

    storage: PagedStorage
    page_tables: Tensor
    cells: Tensor
    rows: Tensor
    lengths: Tensor
    num_splits: int


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `begin` to `end` of the packed row are those from position `start` on of the sequence in `row`."""

    begin: int
    end: int
    row: int
    start: int


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """cells: (tokens,) int64, as in DecodeBatch.

    blocks: (blocks, 4) int64: first query in the packed row, how many, row of the page tables, position of the first.
    """

    storage: PagedStorage
    page_tables: Tensor
    cells: Tensor
    blocks: Tensor
    spans: list[Span]


@dataclass(frozen=True, slots=True)
class PackedPrompts:
    """The model's side of a PromptBatch. input_ids, position_ids: (1, tokens). logits_at: (samples,). All int64.

    The last token of a piece may be `PENDING` in input_ids, if a new token follows from it.
    """

    batch: PromptBatch
    input_ids: Tensor
    position_ids: Tensor
    logits_at: Tensor


def pack_prompts(pieces: list[Piece], rows: RowTable, storage: PagedStorage, page_tables: Tensor) -> PackedPrompts:
    """One transfer to the device carries all of it."""
    spans = _spans(pieces, rows)
    ids = [token for piece in pieces for token in _tokens(piece)]
    positions = np.concatenate([np.arange(span.start, span.start + span.end - span.begin) for span in spans])
    cells = np.concatenate([_cells(piece, storage.page_size) for piece in pieces])
    last = [span.end - 1 for piece, span in zip(pieces, spans, strict=True) if piece.is_last]
    blocks = prompt_blocks(spans)
    table = np.concatenate([np.array(ids, np.int64), positions, cells, blocks.ravel(), np.array(last, np.int64)])
    sizes = [len(ids), len(ids), len(ids), blocks.size, len(last)]
    on_device = torch.split(to_device(table, page_tables.device), sizes)
    batch = PromptBatch(storage, page_tables, on_device[2], on_device[3].view(-1, 4), spans)
    return PackedPrompts(batch, on_device[0][None], on_device[1][None], on_device[4])


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """Through pinned memory, so that nobody waits. torch's allocator keeps that memory until the copy is done."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _spans(pieces: list[Piece], rows: RowTable) -> list[Span]:
    spans = []
    begin = 0
    for piece in pieces:
        end = begin + piece.num_tokens
        spans.append(Span(begin, end, rows.row(piece.sequence), piece.sequence.num_cached_tokens))
        begin = end
    return spans


def _tokens(piece: Piece) -> list[int]:
    start = piece.sequence.num_cached_tokens
    return piece.sequence.token_ids[start : start + piece.num_tokens]


def _cells(piece: Piece, page_size: int) -> Integers:
    start = piece.sequence.num_cached_tokens
    positions = np.arange(start, start + piece.num_tokens)
    pages = np.array(piece.sequence.pages, np.int64)
    cells: Integers = pages[positions // page_size] * page_size + positions % page_size
    return cells


def prompt_blocks(spans: list[Span]) -> Integers:
    """Those that see most go first, so that the last to finish are short."""
    blocks = [
        (first, min(QUERIES_PER_BLOCK, span.end - first), span.row, span.start + first - span.begin)
        for span in spans
        for first in range(span.begin, span.end, QUERIES_PER_BLOCK)
    ]
    return np.array(sorted(blocks, key=lambda block: -block[3] - block[1]), np.int64)
