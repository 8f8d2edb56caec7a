"""Attention for a packed step, in the place where transformers lets a model look up its attention function.

The model computes queries, keys and values of all tokens of the step at once and calls `packed_attention` per layer;
this writes the new K/V into the grid and lets every token see its own sequence. It honours `scaling`,
`sliding_window` and `softcap`; whatever else a model passes that could change the result is refused by name.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor, nn
from transformers import AttentionInterface

from core.errors import ModelFailure
from engine.generation.packing import Packed, Span, first_column

ATTENTION_NAME = "millrace"

_WITHOUT_EFFECT = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
     "past_key_values", "cache_position", "is_causal", "position_embeddings", "logits_to_keep"}
)  # fmt: skip


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
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every attention module of transformers has one
    _check(module, attention_mask, packed, kwargs)
    _check_window(module, layer, sliding_window)
    assert packed is not None
    packed.grid.write(layer, packed.cells, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = _Call(packed, layer, query, scale, sliding_window, softcap)
    out = query.new_empty((query.shape[2], query.shape[1], value.shape[-1]))
    if packed.block is not None:
        out[: packed.block.num_tokens] = call.block()
    for span in packed.spans:
        out[span.begin : span.end] = call.span(span)
    return out[None], None


class _Call:
    """One layer of one step."""

    def __init__(
        self, packed: Packed, layer: int, query: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> None:
        self._packed = packed
        self._query = query[0]  # (heads, tokens, head_dim)
        self._keys = packed.grid.keys(layer)
        self._values = packed.grid.values(layer)
        self._scale = scale
        self._window = window
        self._softcap = softcap

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
        mask = self._packed.block_mask(self._window, query.dtype)
        out = self._attend(grouped, keys, values, mask).reshape(block.num_rows, query.shape[1], -1)
        return out if block.rows is None else out[block.rows]

    def span(self, span: Span) -> Tensor:
        """(tokens of the span, heads, value_dim)."""
        first = first_column(span, self._window)
        keys = self._keys[span.slot, first : span.num_columns].transpose(0, 1)[None]
        values = self._values[span.slot, first : span.num_columns].transpose(0, 1)[None]
        query = self._query[:, span.begin : span.end]
        if span.start == 0 and self._softcap is None and (self._window is None or self._window >= span.num_columns):
            is_grouped = query.shape[0] != keys.shape[1]
            out = F.scaled_dot_product_attention(
                query[None], keys, values, is_causal=True, scale=self._scale, enable_gqa=is_grouped
            )
            return out[0].transpose(0, 1)
        group = query.shape[0] // keys.shape[1]
        mask = self._packed.span_mask(span, self._window, query.dtype).repeat(group, 1)
        out = self._attend(query.reshape(1, keys.shape[1], -1, query.shape[-1]), keys, values, mask[None, None])
        return out.reshape(query.shape[0], span.end - span.begin, -1).transpose(0, 1)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        if self._softcap is None:
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self._scale)
        scores = torch.matmul(query, keys.transpose(2, 3)) * self._scale
        scores = torch.tanh(scores / self._softcap) * self._softcap + mask
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(weights, values)


def _check(module: nn.Module, mask: Tensor | None, packed: Packed | None, kwargs: dict[str, Any]) -> None:
    """Raises ModelFailure; the probe at load time meets it first."""
    name = type(module).__name__
    if packed is None:
        raise ModelFailure(
            f"{name} keeps keyword arguments from its attention function, so this engine cannot serve it"
        )
    if mask is not None:
        raise ModelFailure(f"{name} brings an attention mask of its own, which this engine would have to ignore")
    unknown = [key for key in kwargs.keys() - _WITHOUT_EFFECT if kwargs[key] is not None]
    if unknown:
        raise ModelFailure(f"{name} asks for {', '.join(sorted(unknown))}, which this engine's attention does not know")


def _check_window(module: nn.Module, layer: int, window: int | None) -> None:
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    if window is None and kinds and kinds[layer] == "sliding_attention":
        raise ModelFailure(
            f"{type(module).__name__} does not tell its attention function the sliding window of layer {layer}"
        )
