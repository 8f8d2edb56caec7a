"""The native kernels for tensors on the CPU: what `load_kernels` gives, or None where there is no compiler.

Every kernel takes float32 and bfloat16, sums in float32 and rounds where transformers rounds. `can_take` tells whether
a tensor is fit; the kernels check nothing more. Torch's own threads do the work.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from engine.native.compiler import NotCompiled, compiled_library
from engine.native.decoder import Decoder, DecoderLayer, DecoderShape
from engine.native.library import NativeLibrary
from engine.native.products import DTYPES, Activation, Products

logger = logging.getLogger(__name__)

TILE_TOKENS = 16  # that attend together; more reuse K/V better and spread worse over threads

_loading = threading.Lock()
_WIDEST_HEAD = 512
_TORCH_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")


@dataclass(frozen=True, slots=True)
class How:
    """window: columns that a token sees, itself included; None for all. softcap: None for none."""

    scale: float
    window: int | None = None
    softcap: float | None = None


class Kernels:
    def __init__(self, library: NativeLibrary) -> None:
        self._library = library
        self.products = Products(library)

    def decoder(self, shape: DecoderShape, layers: Sequence[DecoderLayer]) -> Decoder:
        """`can_take` and `can_attend` hold for what it is given too."""
        return Decoder(self._library, shape, layers)

    @staticmethod
    def can_take(*tensors: Tensor) -> bool:
        """One dtype that the kernels know, on the CPU, elements of the last dimension side by side."""
        dtype = tensors[0].dtype
        return dtype in DTYPES and all(
            tensor.dtype == dtype and tensor.device.type == "cpu" and tensor.stride(-1) == 1 for tensor in tensors
        )

    @classmethod
    def can_attend(cls, grid: tuple[Tensor, Tensor], query: Tensor) -> bool:
        """Also: heads that share KV heads evenly, and not so wide that the scratch leaves the processor's cache."""
        return cls.can_take(*grid, query) and query.shape[1] % grid[0].shape[2] == 0 and query.shape[3] <= _WIDEST_HEAD

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float, *, is_offset: bool = False) -> Tensor:
        """weight * round(x / sqrt(mean(x²) + epsilon)), as Llama's; `is_offset`: (1 + weight) times it, as Gemma's.

        x: (…, dim), rows that lie at equal distances. weight: (dim,). To (…, dim), contiguous.
        """
        rows = x.view(-1, x.shape[-1])
        out = torch.empty(x.shape, dtype=x.dtype)
        self._library.rms_norm(
            rows.data_ptr(), weight.data_ptr(), out.data_ptr(), rows.shape[0], rows.shape[1], rows.stride(0),
            epsilon, DTYPES[x.dtype], is_offset, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def gated(self, gate: Tensor, up: Tensor, activation: Activation = Activation.SILU) -> Tensor:
        """round(activation(gate)) * up. gate, up: (…, dim), halves of wider rows too. To (…, dim), contiguous."""
        gates, ups = gate.view(-1, gate.shape[-1]), up.view(-1, up.shape[-1])
        out = torch.empty(gate.shape, dtype=gate.dtype)
        self._library.gated(
            gates.data_ptr(), ups.data_ptr(), out.data_ptr(), gates.shape[0], gates.shape[1], gates.stride(0),
            ups.stride(0), DTYPES[gate.dtype], activation, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def rotate_(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """heads * cosines + rotate_half(heads) * sines in place, each product and the sum rounded.

        heads: (1, heads, tokens, head_dim), any strides but the last. cosines, sines: (1, tokens, dim), dim even and
        at most head_dim, with the same strides; only the first `dim` of a head are turned.
        """
        self._library.rotate(
            heads.data_ptr(), cosines.data_ptr(), sines.data_ptr(), heads.shape[2], heads.shape[1], cosines.shape[-1],
            heads.stride(2), heads.stride(1), cosines.stride(-2), DTYPES[heads.dtype], torch.get_num_threads(),
        )  # fmt: skip
        return heads

    def write(self, grid: tuple[Tensor, Tensor], cells: Tensor, key: Tensor, value: Tensor) -> None:
        """Into the cells of the grid's keys and values, each (rows, columns, kv_heads, …), contiguous.

        cells: (tokens,) int64, row * columns + column. key, value: (1, kv_heads, tokens, …).
        """
        self._library.write(
            grid[0].data_ptr(), grid[1].data_ptr(), key.shape[1], key.shape[3], value.shape[3], DTYPES[key.dtype],
            key.data_ptr(), key.stride(1), key.stride(2), value.data_ptr(), value.stride(1), value.stride(2),
            cells.data_ptr(), cells.shape[0], torch.get_num_threads(),
        )  # fmt: skip

    def attend(self, grid: tuple[Tensor, Tensor], query: Tensor, tiles: Tensor, how: How) -> Tensor:
        """query: (1, heads, tokens, key_dim). tiles: (tiles, 4) int64. To (tokens, heads, value_dim).

        A tile is `(begin, count, row, start)`: tokens `begin` to `begin + count - 1`, at most TILE_TOKENS, stand in
        row `row` of the grid from column `start` on, and each sees that row up to itself. Together the tiles cover all
        tokens; the first are begun first.
        """
        keys, values = grid
        out = torch.empty((query.shape[2], query.shape[1], values.shape[3]), dtype=query.dtype)
        failed = self._library.attend(
            keys.data_ptr(), values.data_ptr(), keys.shape[1], keys.shape[2], keys.shape[3], values.shape[3],
            DTYPES[query.dtype], query.data_ptr(), query.shape[1], query.stride(1), query.stride(2), out.data_ptr(),
            tiles.data_ptr(), tiles.shape[0], TILE_TOKENS, how.window or 0, how.scale, how.softcap or 0.0,
            torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("expected memory for the scratch of the attention kernel, got none")
        return out


def load_kernels() -> Kernels | None:
    """Compiles them where they are not in the cache yet: some seconds, once per machine."""
    with _loading:
        return _load()


def begin_loading() -> None:
    """In the background, so that a later `load_kernels` waits less."""
    threading.Thread(target=load_kernels, name="kernels", daemon=True).start()


@cache
def _load() -> Kernels | None:
    try:
        library = NativeLibrary(compiled_library())
    except (NotCompiled, OSError) as error:
        logger.warning("no native kernels, so a CPU works at two thirds of its speed: %s", error)
        return None
    if not library.share_threads(_torch_library()):
        logger.warning("torch's threads were not found, so the native kernels run on one thread")
    return Kernels(library)


def _torch_library() -> Path:
    directory = Path(torch.__file__).parent / "lib"
    return next((directory / name for name in _TORCH_LIBRARIES if (directory / name).exists()), directory)
