"""Attention for a packed step, in the place where transformers lets a model look up its attention function.

The model computes queries, keys and values of all tokens of the step at once and calls `packed_attention` per layer;
this writes the new K/V into the grid and lets every token see its own sequence, by the native kernels where there are
any, else by torch, which is also what they are tested against. It honours `scaling`, `sliding_window` and `softcap`;
whatever else a model passes that could change the result is refused by name.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.generation.attention_arguments import check_arguments, check_window, layer_index
from engine.generation.packing import Packed, Span, first_column
from engine.native.kernels import How

ATTENTION_NAME = "millrace"


def register() -> None:
    AttentionInterface.register(ATTENTION_NAME, packed_attention)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: Packed | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query: (1, heads, tokens, head_dim); key, value: (1, kv_heads, tokens, …). To (1, tokens, heads, value_dim)."""
    layer = layer_index(module)
    check_arguments(module, attention_mask, packed, kwargs)
    check_window(module, layer, sliding_window)
    assert packed is not None
    packed.grid.write(layer, packed.cells, key, value)
    how = How(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    grid = packed.grid.keys(layer), packed.grid.values(layer)
    kernels = packed.grid.kernels
    if kernels is not None and kernels.can_attend(grid, query):
        return kernels.attend(grid, query, packed.tiles, how)[None], None
    return _Call(packed, grid, query, how).attend()[None], None


class _Call:
    """One layer of one step, by torch."""

    def __init__(self, packed: Packed, grid: tuple[Tensor, Tensor], query: Tensor, how: How) -> None:
        self._packed = packed
        self._query = query[0]  # (heads, tokens, head_dim)
        self._keys, self._values = grid
        self._how = how

    def attend(self) -> Tensor:
        """(tokens, heads, value_dim)."""
        out = self._query.new_empty((self._query.shape[1], self._query.shape[0], self._values.shape[-1]))
        num_in_block = self._packed.num_in_block
        if num_in_block:
            out[:num_in_block] = self.block()
        for span in self._packed.spans[num_in_block:]:
            out[span.begin : span.end] = self.span(span)
        return out

    def block(self) -> Tensor:
        """(tokens of the block, heads, value_dim). Query heads that share a KV head become its rows: no K/V copy."""
        block = self._packed.block
        assert block is not None
        query = self._query[:, : block.num_tokens].transpose(0, 1)
        if block.rows is not None:
            query = query.new_zeros((block.num_rows, *query.shape[1:])).index_copy_(0, block.rows, query)
        num_kv_heads = self._keys.shape[2]
        grouped = query.reshape(block.num_rows, num_kv_heads, -1, query.shape[-1])
        keys = self._keys[: block.num_rows, : block.num_columns].transpose(1, 2)
        values = self._values[: block.num_rows, : block.num_columns].transpose(1, 2)
        mask = self._packed.block_mask(self._how.window, query.dtype)
        out = self._attend(grouped, keys, values, mask).reshape(block.num_rows, query.shape[1], -1)
        return out if block.rows is None else out[block.rows]

    def span(self, span: Span) -> Tensor:
        """(tokens of the span, heads, value_dim)."""
        first = first_column(span, self._how.window)
        keys = self._keys[span.slot, first : span.num_columns].transpose(0, 1)[None]
        values = self._values[span.slot, first : span.num_columns].transpose(0, 1)[None]
        query = self._query[:, span.begin : span.end]
        if span.start == 0 and self._is_causal_alone(span.num_columns):
            is_grouped = query.shape[0] != keys.shape[1]
            out = F.scaled_dot_product_attention(
                query[None], keys, values, is_causal=True, scale=self._how.scale, enable_gqa=is_grouped
            )
            return out[0].transpose(0, 1)
        group = query.shape[0] // keys.shape[1]
        mask = self._packed.span_mask(span, self._how.window, query.dtype).repeat(group, 1)
        out = self._attend(query.reshape(1, keys.shape[1], -1, query.shape[-1]), keys, values, mask[None, None])
        return out.reshape(query.shape[0], span.end - span.begin, -1).transpose(0, 1)

    def _is_causal_alone(self, num_columns: int) -> bool:
        window = self._how.window
        return self._how.softcap is None and (window is None or window >= num_columns)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        if self._how.softcap is None:
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self._how.scale)
        scores = torch.matmul(query, keys.transpose(2, 3)) * self._how.scale
        scores = torch.tanh(scores / self._how.softcap) * self._how.softcap + mask
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(weights, values)
