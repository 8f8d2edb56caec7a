"""All layers of a decoder in one call of the library. Which models are of the kind, `engine.models.layers` knows.

Where the numbers of one stage go to the next is the library's business; here the addresses are laid out as its structs
(decoder.c) want them. Results are those of the same kernels called one by one.
"""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.native.library import NativeLibrary
from engine.native.products import DTYPES, Activation, PackedWeight

_NORM = struct.Struct("Qdq")
_REACH = struct.Struct("qdd")
_DECODER = struct.Struct("9q")
_STEP = struct.Struct("9Q7q")


@dataclass(frozen=True, slots=True)
class NormWeight:
    """As `Kernels.rms_norm` takes them. weight: (dim,), contiguous."""

    weight: Tensor
    epsilon: float
    is_offset: bool

    def packed(self) -> bytes:
        return _NORM.pack(self.weight.data_ptr(), self.epsilon, self.is_offset)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """query_norm, key_norm: of each head by itself, before the rotation. window: columns that a token sees, itself
    included, None for all. softcap: None for none."""

    input_norm: NormWeight
    query_norm: NormWeight | None
    key_norm: NormWeight | None
    inner_norm: NormWeight
    query: PackedWeight
    key: PackedWeight
    value: PackedWeight
    output: PackedWeight
    gate: PackedWeight
    up: PackedWeight
    down: PackedWeight
    scale: float
    window: int | None = None
    softcap: float | None = None

    def packed(self) -> bytes:
        norms = (self.input_norm, self.query_norm, self.key_norm, self.inner_norm)
        weights = (self.query, self.key, self.value, self.output, self.gate, self.up, self.down)
        return b"".join(
            [
                *(_NORM.pack(0, 0.0, 0) if norm is None else norm.packed() for norm in norms),
                *(weight.part(0) for weight in weights),
                _REACH.pack(self.window or 0, self.scale, self.softcap or 0.0),
            ]
        )


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The same in every layer. width: of the numbers that go from layer to layer; inner: between gate and down."""

    dtype: torch.dtype
    activation: Activation
    width: int
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    inner: int


@dataclass(frozen=True, slots=True)
class DecoderStep:
    """cosines, sines: (1, tokens, dim), dtype of the model, with the same strides, the last of which is 1.
    cells: (tokens,). tiles: as `Kernels.attend` takes them, of at most `tile_tokens` tokens each. wanted: (samples,),
    ascending, the tokens whose output is asked for; last_tiles: a tile of its own for each of them. All int64.
    grids: K and V of every layer, each (rows, columns, kv_heads, dim), contiguous.
    """

    cosines: Tensor
    sines: Tensor
    cells: Tensor
    tiles: Tensor
    tile_tokens: int
    last_tiles: Tensor
    wanted: Tensor
    grids: Sequence[tuple[Tensor, Tensor]]


class Decoder:
    def __init__(self, library: NativeLibrary, shape: DecoderShape, layers: Sequence[DecoderLayer]) -> None:
        self.shape = shape
        self.layers = tuple(layers)  # keeps alive what the addresses mean
        self._library = library
        self._packed = b"".join([layer.packed() for layer in layers])
        self._head = _DECODER.pack(
            len(layers), DTYPES[shape.dtype], shape.activation, shape.width, shape.num_heads, shape.num_kv_heads,
            shape.key_dim, shape.value_dim, shape.inner,
        )  # fmt: skip

    def run_(self, hidden: Tensor, step: DecoderStep) -> Tensor:
        """hidden: (1, tokens, width), contiguous. Changed in place: the wanted rows hold what the last layer gives,
        the others something finite that has no meaning. Raises MemoryError."""
        num_tokens, num_wanted = hidden.shape[1], step.wanted.shape[0]
        num_bytes = self._library.decoder_bytes(self._head, num_tokens, num_wanted)
        scratch = torch.empty(num_bytes, dtype=torch.uint8)
        grids = (ctypes.c_void_p * (2 * len(self.layers)))(
            *(tensor.data_ptr() for pair in step.grids for tensor in pair)
        )
        packed = _STEP.pack(
            hidden.data_ptr(), scratch.data_ptr(), step.cosines.data_ptr(), step.sines.data_ptr(),
            step.cells.data_ptr(), step.tiles.data_ptr(), step.last_tiles.data_ptr(), step.wanted.data_ptr(),
            ctypes.addressof(grids), num_tokens, step.tiles.shape[0], num_wanted, step.grids[0][0].shape[1],
            step.cosines.shape[-1], step.cosines.stride(-2), step.tile_tokens,
        )  # fmt: skip
        if self._library.decode(self._head, self._packed, packed, torch.get_num_threads()):
            raise MemoryError("expected memory for the scratch of the layers' kernels, got none")
        return hidden
