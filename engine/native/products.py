"""Products with weights that were packed once: linear layers, several that read the same rows, and gated pairs.

`can_pack` tells at load time whether a weight is fit. Results are those of torch up to the order of sums, which are
float32.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from engine.native.library import NativeLibrary

MOST_AT_ONCE = 4  # layers in one call

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # as in vectors.h
_WIDEST_PANEL = 16
_PART = struct.Struct("4q")  # `struct part` in products.c


class Activation(IntEnum):
    """As in activation.h."""

    SILU = 0
    GELU_TANH = 1


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """panels: the weight in the kernel's order. columns, depth: how many numbers come out for a row, and go in."""

    panels: Tensor
    bias: Tensor | None
    columns: int
    depth: int

    def part(self, out_address: int) -> bytes:
        bias_address = 0 if self.bias is None else self.bias.data_ptr()
        return _PART.pack(self.panels.data_ptr(), bias_address, out_address, self.columns)


class Products:
    def __init__(self, library: NativeLibrary) -> None:
        self._library = library
        self._has_tiles = torch.cpu._is_amx_tile_supported()

    def can_pack(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether these kernels multiply by it, and quicker than torch on this processor."""
        number = DTYPES.get(weight.dtype)
        if number is None or weight.device.type != "cpu" or weight.dim() != 2 or 0 in weight.shape:
            return False
        if weight.dtype == torch.bfloat16 and (self._has_tiles or weight.shape[1] % 2):
            return False
        return (bias is None or bias.dtype == weight.dtype) and bool(self._library.multiplies_well(number))

    def pack(self, weight: Tensor, bias: Tensor | None) -> PackedWeight:
        """weight: (columns, depth)."""
        weight = weight.detach().contiguous()
        columns, depth = weight.shape
        panels = torch.empty(-(-columns // _WIDEST_PANEL) * _WIDEST_PANEL * depth, dtype=weight.dtype)
        self._library.pack(
            weight.data_ptr(), panels.data_ptr(), columns, depth, DTYPES[weight.dtype], torch.get_num_threads()
        )
        return PackedWeight(panels, None if bias is None else bias.detach().contiguous(), columns, depth)

    def multiply(self, rows: Tensor, weights: Sequence[PackedWeight]) -> list[Tensor]:
        """rows: (…, depth) of the weights' dtype. To one contiguous (…, columns) for each of 1 to 4 weights."""
        flat = _flat(rows, weights[0])
        out = [rows.new_empty((*rows.shape[:-1], weight.columns)) for weight in weights]
        parts = b"".join([weight.part(place.data_ptr()) for weight, place in zip(weights, out, strict=True)])
        self._library.multiply(
            flat.data_ptr(), flat.shape[0], flat.shape[1], _row_stride(flat), parts, len(out), DTYPES[rows.dtype],
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def gated_mlp(
        self, rows: Tensor, weights: tuple[PackedWeight, PackedWeight, PackedWeight], activation: Activation
    ) -> Tensor:
        """(round(activation(rows @ gate)) * (rows @ up)) @ down, rounded as transformers rounds. rows: (…, depth)."""
        gate, up, down = weights
        flat = _flat(rows, gate)
        between = rows.new_empty((flat.shape[0], gate.columns))
        out = rows.new_empty((*rows.shape[:-1], down.columns))
        self._library.gated_mlp(
            flat.data_ptr(), flat.shape[0], flat.shape[1], _row_stride(flat),
            gate.part(between.data_ptr()) + up.part(0) + down.part(out.data_ptr()), DTYPES[rows.dtype], activation,
            torch.get_num_threads(),
        )  # fmt: skip
        return out


def _flat(rows: Tensor, weight: PackedWeight) -> Tensor:
    if rows.dtype != weight.panels.dtype or rows.shape[-1] != weight.depth:
        raise RuntimeError(
            f"expected rows of {weight.depth} numbers in {weight.panels.dtype}, got {rows.shape[-1]} in {rows.dtype}; "
            "the layer before must give what this one was loaded for"
        )
    flat = rows.reshape(-1, weight.depth)
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _row_stride(rows: Tensor) -> int:
    return rows.stride(0) if rows.shape[0] > 1 else rows.shape[1]
