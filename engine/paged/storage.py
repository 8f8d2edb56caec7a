"""The K/V of all pages of a model: per layer two tensors of pages. Knows neither sequences nor who owns a page.

Layers come into being when the model first writes to them, with the shapes it writes; the probe does that at load time
with a few pages, and `allocate` then gives every known layer its final size, once, so that CUDA graphs can rely on the
addresses. A page more than asked for, the spare page, takes what padded rows of a batch write.
"""

import torch
from torch import Tensor

PAGE_SIZE = 32
"""Tokens. 16 would double page tables and the work to keep them; 64 waste half a page more per sequence and share less
of a common prefix. At 32 a tile of 64 or 128 tokens is whole pages, and a page of one head at least 4 KB in bf16."""


class PagedStorage:
    """Every tensor: (pages + 1, page_size, kv_heads, head_dim), so that a token's K/V are one contiguous line."""

    def __init__(self, num_pages: int, device: torch.device, page_size: int = PAGE_SIZE) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.device = device
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def spare_page(self) -> int:
        return self.num_pages

    @property
    def num_kv_heads(self) -> int:
        """Of the layer that has fewest; 1 while none is known."""
        return min((keys.shape[2] for keys, _ in self._layers.values()), default=1)

    @property
    def bytes_per_token(self) -> int:
        tensors = [tensor for layer in self._layers.values() for tensor in layer]
        return sum(tensor[0, 0].numel() * tensor.element_size() for tensor in tensors)

    def layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Its keys and values, made where it has none. key, value: (1, kv_heads, tokens, head_dim), to be written."""
        if layer not in self._layers:
            self._layers[layer] = (
                self._empty((key.shape[1], key.shape[3]), key.dtype),
                self._empty((value.shape[1], value.shape[3]), value.dtype),
            )
        return self._layers[layer]

    def allocate(self, num_pages: int) -> None:
        """Another number of pages for the layers known by now. All K/V are lost, and all addresses change."""
        shapes = {layer: [(x.shape[2:], x.dtype) for x in tensors] for layer, tensors in self._layers.items()}
        self._layers.clear()
        self.num_pages = num_pages
        for layer, ((key_shape, key_dtype), (value_shape, value_dtype)) in shapes.items():
            self._layers[layer] = (self._empty(key_shape, key_dtype), self._empty(value_shape, value_dtype))

    def _empty(self, heads_and_dim: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Not filled: no cell is read before it is written, but for those of the spare page."""
        shape = (self.num_pages + 1, self.page_size, *heads_and_dim)
        pages = torch.empty(shape, dtype=dtype, device=self.device)
        pages[-1].zero_()
        return pages
