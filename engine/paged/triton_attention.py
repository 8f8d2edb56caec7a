"""Launches the Triton kernels: which tile for which head, how many parts for how long a sequence. Knows no model.

Triton comes with torch's builds for CUDA and is imported here and in `kernels` alone. Nothing falls back to another
attention: a kernel that does not compile or run is an error, which the probe at load time meets first.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from engine.paged.attention import Call
from engine.paged.batch import QUERIES_PER_BLOCK, DecodeBatch, PromptBatch
from engine.paged.kernels import decode_kernel, merge_kernel, prompt_kernel, write_kernel

_SMALLEST_DOT = 16  # rows, columns and depth of the tensor cores' products
_SMALL_TILE_BYTES = 64 * 128 * 2  # of keys; larger ones leave no room for three stages in flight


@dataclass(frozen=True, slots=True)
class Tile:
    """Compile-time shape of a kernel for one kind of layer. key_dim, value_dim: as they are; blocks: padded."""

    key_dim: int
    value_dim: int
    kv_heads: int
    group: int
    itemsize: int

    @property
    def block_key(self) -> int:
        return _padded(self.key_dim)

    @property
    def block_value(self) -> int:
        return _padded(self.value_dim)

    @property
    def block_group(self) -> int:
        return _padded(self.group)

    @property
    def block_columns(self) -> int:
        columns = _SMALL_TILE_BYTES // (max(self.block_key, self.block_value) * self.itemsize)
        return min(64, max(_SMALLEST_DOT, columns))

    @property
    def num_stages(self) -> int:
        return 3 if self.itemsize == 2 and max(self.block_key, self.block_value) <= 128 else 2

    @property
    def num_prompt_warps(self) -> int:
        """Float32 is multiplied in registers, of which a warp of a large tile would not have enough."""
        if self.itemsize == 2:
            return 4
        return 8 if max(self.block_key, self.block_value) <= 128 else 16


class TritonKernels:
    def write(self, cells: Tensor, key: Tensor, value: Tensor, pages: tuple[Tensor, Tensor]) -> None:
        keys, values = pages
        key, value = _dense(key), _dense(value)
        key_dim, value_dim = key.shape[-1], value.shape[-1]
        write_kernel[(key.shape[0], key.shape[1])](
            cells, key, value, keys, values,
            key.stride(0), key.stride(1), value.stride(0), value.stride(1),
            KEY_DIM=key_dim, VALUE_DIM=value_dim,
            BLOCK_KEY=triton.next_power_of_2(key_dim), BLOCK_VALUE=triton.next_power_of_2(value_dim),
            num_warps=1,
        )  # fmt: skip

    def decode(self, call: Call, batch: DecodeBatch) -> Tensor:
        query, tile = _dense(call.query), _tile(call)
        num_tokens, num_heads, _ = query.shape
        out = query.new_empty((num_tokens, num_heads, tile.value_dim))
        num_splits = batch.num_splits
        partial = (num_tokens, num_heads, num_splits) if num_splits > 1 else (0, 0, 0)
        sums = query.new_empty((*partial, tile.value_dim), dtype=torch.float32)
        highest, total = query.new_empty((2, *partial), dtype=torch.float32)
        decode_kernel[(num_tokens, tile.kv_heads, num_splits)](
            out, sums, highest, total,
            query, call.keys, call.values, batch.page_tables, batch.rows, batch.lengths,
            query.stride(0), query.stride(1), batch.page_tables.stride(0), num_splits,
            call.scale, call.softcap or 0.0, call.window or 0,
            KV_HEADS=tile.kv_heads, GROUP=tile.group, KEY_DIM=tile.key_dim, VALUE_DIM=tile.value_dim,
            PAGE_SIZE=call.keys.shape[1], BLOCK_GROUP=tile.block_group, BLOCK_KEY=tile.block_key,
            BLOCK_VALUE=tile.block_value, BLOCK_COLUMNS=tile.block_columns, HAS_WINDOW=call.window is not None,
            HAS_SOFTCAP=call.softcap is not None, IS_SPLIT=num_splits > 1,
            UPCASTS=_upcasts(call),
            num_warps=4, num_stages=tile.num_stages,
        )  # fmt: skip
        if num_splits > 1:
            merge_kernel[(num_tokens, num_heads)](
                out, sums, highest, total, num_splits,
                VALUE_DIM=tile.value_dim, BLOCK_VALUE=tile.block_value,
                BLOCK_SPLITS=triton.next_power_of_2(num_splits), num_warps=4,
            )  # fmt: skip
        return out

    def prompts(self, call: Call, batch: PromptBatch) -> Tensor:
        query, tile = _dense(call.query), _tile(call)
        num_tokens, num_heads, _ = query.shape
        out = query.new_empty((num_tokens, num_heads, tile.value_dim))
        prompt_kernel[(num_heads, batch.blocks.shape[0])](
            out, query, call.keys, call.values, batch.page_tables, batch.blocks,
            query.stride(0), query.stride(1), batch.page_tables.stride(0),
            call.scale, call.softcap or 0.0, call.window or 0,
            KV_HEADS=tile.kv_heads, GROUP=tile.group, KEY_DIM=tile.key_dim, VALUE_DIM=tile.value_dim,
            PAGE_SIZE=call.keys.shape[1], BLOCK_QUERIES=QUERIES_PER_BLOCK, BLOCK_KEY=tile.block_key,
            BLOCK_VALUE=tile.block_value, BLOCK_COLUMNS=tile.block_columns, HAS_WINDOW=call.window is not None,
            HAS_SOFTCAP=call.softcap is not None, UPCASTS=_upcasts(call),
            num_warps=tile.num_prompt_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        return out


def _tile(call: Call) -> Tile:
    kv_heads, key_dim = call.keys.shape[2:]
    return Tile(key_dim, call.values.shape[-1], kv_heads, call.query.shape[1] // kv_heads, call.keys.element_size())


def _upcasts(call: Call) -> bool:
    return bool(triton.knobs.runtime.interpret) and call.keys.dtype == torch.bfloat16


def _padded(size: int) -> int:
    return max(_SMALLEST_DOT, 1 << (size - 1).bit_length())


def _dense(tensor: Tensor) -> Tensor:
    """The kernels take any strides but of the last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
