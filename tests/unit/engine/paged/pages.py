"""Sequences, pages and attention calls made by hand, for tests of what works on pages."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.protocol import Sampling
from engine.generation.scheduler import Piece
from engine.generation.sequence import Sequence
from engine.paged.attention import Call
from engine.paged.batch import DecodeBatch, PromptBatch, Span, prompt_blocks
from engine.paged.storage import PagedStorage

GREEDY = Sampling(temperature=0)


def sequence(token_ids: list[int], pages: list[int], *, sampling: Sampling = GREEDY, seed: int = 0) -> Sequence:
    made = Sequence((b"", str(pages)), list(token_ids), sampling, 0, 0, seed, 64)
    made.pages = list(pages)
    return made


def whole(one: Sequence) -> Piece:
    return Piece(one, one.num_uncached_tokens)


def take(one: Sequence, token_id: int) -> None:
    """What the generator does with a new token."""
    one.num_cached_tokens = len(one.token_ids)
    one.token_ids.append(token_id)


@dataclass(frozen=True)
class Shape:
    """A layer, and sequences that have so many tokens. num_new: of them that are queries of a prompt batch."""

    lengths: tuple[int, ...]
    num_new: tuple[int, ...]
    kv_heads: int = 2
    group: int = 2
    key_dim: int = 16
    value_dim: int = 16
    page_size: int = 8
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.float32
    num_splits: int = 1


class Layer:
    """Pages in random order, full of NaN but where a sequence has its K/V."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._random = torch.Generator().manual_seed(0)
        num_pages = [-(-length // shape.page_size) for length in shape.lengths]
        self.storage = PagedStorage(sum(num_pages), torch.device("cpu"), shape.page_size)
        order = torch.split(torch.randperm(sum(num_pages), generator=self._random), num_pages)
        self.page_tables = torch.full((len(order) + 1, max(num_pages)), sum(num_pages), dtype=torch.int32)
        for row, pages in enumerate(order):
            self.page_tables[row, : len(pages)] = pages.int()
        self.pages = (self._nans(shape.key_dim), self._nans(shape.value_dim))
        self.cells = torch.cat([self._cells(row, 0, length) for row, length in enumerate(shape.lengths)])
        self.key = self.draw(len(self.cells), shape.kv_heads, shape.key_dim)
        self.value = self.draw(len(self.cells), shape.kv_heads, shape.value_dim)

    def draw(self, tokens: int, heads: int, dim: int) -> Tensor:
        """(tokens, heads, dim), strided as a model leaves it."""
        values = torch.randn((heads, tokens, dim), generator=self._random)
        return values.to(self.shape.dtype).transpose(0, 1)

    def call(self, num_queries: int) -> Call:
        shape = self.shape
        query = self.draw(num_queries, shape.kv_heads * shape.group, shape.key_dim)
        return Call(query, *self.pages, shape.key_dim**-0.5, shape.window, shape.softcap)

    def decode_batch(self) -> DecodeBatch:
        lengths, rows = torch.tensor(self.shape.lengths), torch.arange(len(self.shape.lengths))
        return DecodeBatch(self.storage, self.page_tables, self.cells[:0], rows, lengths, self.shape.num_splits)

    def prompt_batch(self) -> PromptBatch:
        ends = np.cumsum(self.shape.num_new).tolist()
        spans = [
            Span(end - new, end, row, length - new)
            for row, (end, new, length) in enumerate(zip(ends, self.shape.num_new, self.shape.lengths, strict=True))
        ]
        blocks = torch.from_numpy(prompt_blocks(spans))
        return PromptBatch(self.storage, self.page_tables, self.cells[:0], blocks, spans)

    def _nans(self, dim: int) -> Tensor:
        shape = (self.storage.num_pages + 1, self.shape.page_size, self.shape.kv_heads, dim)
        return torch.full(shape, float("nan"), dtype=self.shape.dtype)

    def _cells(self, row: int, start: int, end: int) -> Tensor:
        positions = torch.arange(start, end)
        size = self.shape.page_size
        return self.page_tables[row, positions // size].long() * size + positions % size
