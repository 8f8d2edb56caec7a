"""The K/V of all running sequences of a model: per layer a grid of rows (slots) and columns (positions).

Layers come into being when the model first writes to them, with the shapes it writes. Cells that hold nothing are zero
or stale but finite: attention masks them, and a mask cannot hide a NaN, so a row that produced one is wiped.
"""

import torch
from torch import Tensor

from engine.kv.slots import Move


class KvGrid:
    """Every tensor: (rows, columns, kv_heads, head_dim), so that a token's K/V are one contiguous line to write."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    @property
    def bytes_per_token(self) -> int:
        tensors = [*self._keys.values(), *self._values.values()]
        return sum(tensor[0, 0].numel() * tensor.element_size() for tensor in tensors)

    def keys(self, layer: int) -> Tensor:
        return self._keys[layer]

    def values(self, layer: int) -> Tensor:
        return self._values[layer]

    def write(self, layer: int, cells: Tensor, key: Tensor, value: Tensor) -> None:
        """cells: (tokens,) int64, row * columns + column. key, value: (1, kv_heads, tokens, head_dim)."""
        if layer not in self._keys:
            self._keys[layer] = self._empty(key)
            self._values[layer] = self._empty(value)
        for grid, new in ((self._keys[layer], key), (self._values[layer], value)):
            grid.flatten(0, 1).index_copy_(0, cells, new[0].transpose(0, 1))

    def resize(self, shape: tuple[int, int]) -> None:
        """Keeps what both shapes hold. Tensor by tensor, so that the old and the new grid never lie side by side."""
        if shape == self.shape:
            return
        rows, columns = min(shape[0], self.shape[0]), min(shape[1], self.shape[1])
        for grids in (self._keys, self._values):
            for layer, old in grids.items():
                grids[layer] = new = old.new_zeros((*shape, *old.shape[2:]))
                new[:rows, :columns] = old[:rows, :columns]
        self.shape = shape

    def move(self, move: Move) -> None:
        for grid in (*self._keys.values(), *self._values.values()):
            grid[move.target, : move.num_tokens] = grid[move.source, : move.num_tokens]

    def wipe(self, slot: int) -> None:
        for grid in (*self._keys.values(), *self._values.values()):
            grid[slot].zero_()

    def drop(self) -> None:
        """Give all memory back; the next writes allocate anew."""
        self._keys.clear()
        self._values.clear()

    def _empty(self, like: Tensor) -> Tensor:
        _, heads, _, head_dim = like.shape
        return torch.zeros((*self.shape, heads, head_dim), dtype=like.dtype, device=like.device)
