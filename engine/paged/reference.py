"""Attention over pages in plain torch, sequence by sequence: what a CPU computes, and the oracle of the GPU's kernels.

It gathers the pages of a sequence in order and attends to them; clarity goes before speed. On a CPU rows of a grid
(`engine.generation`) are the faster form.
"""

import torch
from torch import Tensor

from engine.paged.attention import Call
from engine.paged.batch import DecodeBatch, PromptBatch


class ReferenceKernels:
    def write(self, cells: Tensor, key: Tensor, value: Tensor, pages: tuple[Tensor, Tensor]) -> None:
        for own, new in zip(pages, (key, value), strict=True):
            own.flatten(0, 1).index_copy_(0, cells, new)

    def decode(self, call: Call, batch: DecodeBatch) -> Tensor:
        rows, lengths = batch.rows.tolist(), batch.lengths.tolist()
        tokens = [
            _attend(call, call.query[token : token + 1], batch.page_tables[row], length - 1)
            for token, (row, length) in enumerate(zip(rows, lengths, strict=True))
        ]
        return torch.cat(tokens)

    def prompts(self, call: Call, batch: PromptBatch) -> Tensor:
        spans = [
            _attend(call, call.query[span.begin : span.end], batch.page_tables[span.row], span.start)
            for span in batch.spans
        ]
        return torch.cat(spans)


def _attend(call: Call, query: Tensor, page_table: Tensor, start: int) -> Tensor:
    """query: (tokens, heads, head_dim), from position `start` on. (tokens, heads, value_dim)."""
    end = start + query.shape[0]
    first = 0 if call.window is None else max(0, start + 1 - call.window)
    keys = _gather(call.keys, page_table, first, end).float()
    values = _gather(call.values, page_table, first, end).float()
    positions = torch.arange(start, end, device=query.device)
    columns = torch.arange(first, end, device=query.device)
    allowed = columns[None, :] <= positions[:, None]
    if call.window is not None:
        allowed &= columns[None, :] > positions[:, None] - call.window
    grouped = query.float().reshape(
        len(query), keys.shape[1], -1, query.shape[-1]
    )  # (tokens, kv_heads, group, head_dim)
    scores = torch.einsum("tkgd,skd->kgts", grouped, keys) * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    return torch.einsum("kgts,skd->tkgd", weights, values).flatten(1, 2).to(query.dtype)


def _gather(pages: Tensor, page_table: Tensor, first: int, end: int) -> Tensor:
    """K/V of positions `first` to `end`: (tokens, kv_heads, dim)."""
    page_size = pages.shape[1]
    first_page = first // page_size
    own = pages[page_table[first_page : -(-end // page_size)].long()].flatten(0, 1)
    return own[first - first_page * page_size : end - first_page * page_size]
