"""The K/V of all running sequences of a model: per layer a grid of rows (slots) and columns (positions).

Layers come into being when the model first writes to them, with the shapes it writes. Cells that hold nothing are zero
or stale but finite: attention masks them, and a mask cannot hide a NaN, so a row that produced one is wiped.
"""

import math
import mmap

import torch
from torch import Tensor

from engine.kv.pool import Copy
from engine.native.kernels import Kernels


class KvGrid:
    """Every tensor: (rows, columns, kv_heads, head_dim), so that a token's K/V are one contiguous line to write.

    kernels: what writes into it and attends over it where there is something faster than torch.
    """

    def __init__(self, shape: tuple[int, int], kernels: Kernels | None = None) -> None:
        self.shape = shape
        self.kernels = kernels
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    @property
    def bytes_per_token(self) -> int:
        return sum(tensor[0, 0].numel() * tensor.element_size() for tensor in self.tensors())

    def keys(self, layer: int) -> Tensor:
        return self._keys[layer]

    def values(self, layer: int) -> Tensor:
        return self._values[layer]

    def tensors(self) -> list[Tensor]:
        return [*self._keys.values(), *self._values.values()]

    def pair(
        self, layer: int, key_line: tuple[int, int], value_line: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, made where they are not there yet. Lines: heads and dimension of a token's.
        like: of their dtype and device."""
        if layer not in self._keys:
            keys, values = self._empty(key_line, like), self._empty(value_line, like)  # both or, out of memory, none
            self._keys[layer], self._values[layer] = keys, values
        return self._keys[layer], self._values[layer]

    def write(self, layer: int, cells: Tensor, key: Tensor, value: Tensor) -> None:
        """cells: (tokens,) int64, row * columns + column. key, value: (1, kv_heads, tokens, head_dim)."""
        pair = self.pair(layer, (key.shape[1], key.shape[3]), (value.shape[1], value.shape[3]), key)
        if self.kernels is not None and self.kernels.can_take(key, value, *pair):
            self.kernels.write(pair, cells, key, value)
            return
        for grid, new in zip(pair, (key, value), strict=True):
            grid.flatten(0, 1).index_copy_(0, cells, new[0].transpose(0, 1))

    def resize(self, shape: tuple[int, int]) -> None:
        """Keeps what both shapes hold. Tensor by tensor, so that the old and the new grid never lie side by side."""
        if shape == self.shape:
            return
        rows, columns = min(shape[0], self.shape[0]), min(shape[1], self.shape[1])
        for grids in (self._keys, self._values):
            for layer, old in grids.items():
                grids[layer] = new = _zeros((*shape, *old.shape[2:]), old)
                new[:rows, :columns] = old[:rows, :columns]
        self.shape = shape

    def move(self, move: Copy) -> None:
        for grid in self.tensors():
            grid[move.target, : move.num_tokens] = grid[move.source, : move.num_tokens]

    def wipe(self, slot: int) -> None:
        for grid in self.tensors():
            grid[slot].zero_()

    def drop(self) -> None:
        """Give all memory back; the next writes allocate anew."""
        self._keys.clear()
        self._values.clear()

    def _empty(self, line: tuple[int, int], like: Tensor) -> Tensor:
        return _zeros((*self.shape, *line), like)


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """On a CPU from pages that the system zeroes when they are first touched: a grid that grows would else stop
    everybody for as long as it takes to write all of it, most of which nobody needs yet. Private, not shared, which is
    mmap's default here: pages of shared memory cost twice as much to touch."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    num_bytes = math.prod(shape) * like.element_size()
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError) as error:
        raise torch.OutOfMemoryError(f"the system gave no {num_bytes} bytes for K/V: {error}") from error
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
