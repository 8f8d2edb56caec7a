"""The attention function for pages, in the place where transformers lets a model look up its attention function.

The model computes queries, keys and values of all tokens of a pass at once and calls `paged_attention` per layer; this
has the new K/V written into their pages and every query see its own sequence. It honours `scaling`, `sliding_window`
and `softcap`, refuses what it does not know, and leaves the arithmetic to `PagedKernels`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from engine.generation.attention_arguments import check_arguments, check_window, layer_index
from engine.paged.batch import DecodeBatch, PromptBatch

ATTENTION_NAME = "millrace_paged"


@dataclass(frozen=True, slots=True)
class Call:
    """One layer of one pass. query: (tokens, heads, head_dim), of any strides. keys, values: the layer's pages.

    scale: of the scores. window: how many tokens a query sees, its own included. softcap: bound of the scores.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    scale: float
    window: int | None
    softcap: float | None


class PagedKernels(Protocol):
    def write(self, cells: Tensor, key: Tensor, value: Tensor, pages: tuple[Tensor, Tensor]) -> None:
        """cells: (tokens,) int64. key, value: (tokens, kv_heads, dim), of any strides, to those cells of `pages`."""

    def decode(self, call: Call, batch: DecodeBatch) -> Tensor:
        """(tokens, heads, value_dim)."""

    def prompts(self, call: Call, batch: PromptBatch) -> Tensor:
        """(tokens, heads, value_dim)."""


@dataclass(frozen=True, slots=True)
class Paged:
    """What the model hands through to its attention layers."""

    batch: DecodeBatch | PromptBatch
    kernels: PagedKernels


def register() -> None:
    AttentionInterface.register(ATTENTION_NAME, paged_attention)


def paged_attention(
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
    packed: Paged | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query: (1, heads, tokens, head_dim); key, value: (1, kv_heads, tokens, …). To (1, tokens, heads, value_dim)."""
    layer = layer_index(module)
    check_arguments(module, attention_mask, packed, kwargs)
    check_window(module, layer, sliding_window)
    assert packed is not None
    batch, kernels = packed.batch, packed.kernels
    keys, values = pages = batch.storage.layer(layer, key, value)
    kernels.write(batch.cells, key[0].transpose(0, 1), value[0].transpose(0, 1), pages)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = Call(query[0].transpose(0, 1), keys, values, scale, sliding_window, softcap)
    out = kernels.decode(call, batch) if isinstance(batch, DecodeBatch) else kernels.prompts(call, batch)
    return out[None], None
