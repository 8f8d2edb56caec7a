"""All layers in one call give the numbers of the same kernels called one by one, for whatever shape of heads."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.native.decoder import DecoderLayer, DecoderShape, DecoderStep, NormWeight
from engine.native.kernels import TILE_TOKENS, How, Kernels
from engine.native.products import Activation, PackedWeight

DTYPES = [torch.float32, torch.bfloat16]
ROWS, COLUMNS = 3, 80


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    num_layers: int
    num_kv_heads: int
    group: int
    key_dim: int
    value_dim: int
    rotary_dim: int
    width: int
    inner: int
    activation: Activation
    is_offset: bool
    has_head_norms: bool
    has_bias: bool
    window: int | None
    softcap: float | None
    lengths: tuple[int, int, int]  # new tokens of each row
    starts: tuple[int, int, int]
    wanted: tuple[bool, bool, bool]  # whether the last token of each row is


def even(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high).map(lambda number: 2 * number)


CASES = st.builds(
    Case,
    dtype=st.sampled_from(DTYPES),
    num_layers=st.integers(1, 3),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    key_dim=even(4, 20),
    value_dim=even(1, 20),
    rotary_dim=even(1, 4),
    width=even(2, 40),
    inner=even(1, 40),
    activation=st.sampled_from(list(Activation)),
    is_offset=st.booleans(),
    has_head_norms=st.booleans(),
    has_bias=st.booleans(),
    window=st.none() | st.integers(1, 40),
    softcap=st.none() | st.just(5.0),
    lengths=st.tuples(st.integers(1, 40), st.integers(0, 3), st.integers(0, 20)),
    starts=st.tuples(*[st.integers(0, 40)] * 3),
    wanted=st.tuples(*[st.booleans()] * 3),
)


class Drawn:
    """Weights, inputs and K/V of a case, the same for the same case."""

    def __init__(self, kernels: Kernels, case: Case) -> None:
        self.kernels, self.case = kernels, case
        self._chance = torch.Generator().manual_seed(0)
        self.layers = [self._layer() for _ in range(case.num_layers)]
        self.num_tokens = sum(case.lengths)
        self.hidden = self.numbers(1, self.num_tokens, case.width)
        self.cosines = self.numbers(1, self.num_tokens, case.rotary_dim)
        self.sines = self.numbers(1, self.num_tokens, case.rotary_dim)
        shapes = [(ROWS, COLUMNS, case.num_kv_heads, dim) for dim in (case.key_dim, case.value_dim)]
        self.grids = [(self.numbers(*shapes[0]), self.numbers(*shapes[1])) for _ in range(case.num_layers)]
        self.tiles, self.cells, wanted, begin = [], [], [], 0
        for row, (length, start) in enumerate(zip(case.lengths, case.starts, strict=True)):
            for first in range(0, length, TILE_TOKENS):
                self.tiles.append((begin + first, min(TILE_TOKENS, length - first), row, start + first))
            self.cells += [row * COLUMNS + start + index for index in range(length)]
            begin += length
            if length and case.wanted[row]:
                wanted.append((begin - 1, 1, row, start + length - 1))
        self.last_tiles = torch.tensor(wanted, dtype=torch.int64).view(-1, 4)

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._chance).to(self.case.dtype)

    def weight(self, columns: int, depth: int) -> PackedWeight:
        bias = self.numbers(columns) if self.case.has_bias else None
        return self.kernels.products.pack(self.numbers(columns, depth) / depth**0.5, bias)

    def norm(self, dim: int) -> NormWeight:
        return NormWeight(self.numbers(dim), 1e-5, self.case.is_offset)

    def step(self) -> DecoderStep:
        grids = [(keys.clone(), values.clone()) for keys, values in self.grids]
        wanted = self.last_tiles[:, 0].contiguous()
        cells, tiles = torch.tensor(self.cells), torch.tensor(self.tiles)
        return DecoderStep(self.cosines, self.sines, cells, tiles, TILE_TOKENS, self.last_tiles, wanted, grids)

    def _layer(self) -> DecoderLayer:
        case = self.case
        heads = case.num_kv_heads * case.group
        return DecoderLayer(
            input_norm=self.norm(case.width),
            query_norm=self.norm(case.key_dim) if case.has_head_norms else None,
            key_norm=self.norm(case.key_dim) if case.has_head_norms else None,
            inner_norm=self.norm(case.width),
            query=self.weight(heads * case.key_dim, case.width),
            key=self.weight(case.num_kv_heads * case.key_dim, case.width),
            value=self.weight(case.num_kv_heads * case.value_dim, case.width),
            output=self.weight(case.width, heads * case.value_dim),
            gate=self.weight(case.inner, case.width),
            up=self.weight(case.inner, case.width),
            down=self.weight(case.width, case.inner),
            scale=case.key_dim**-0.5,
            window=case.window,
            softcap=case.softcap,
        )


def one_by_one(drawn: Drawn, step: DecoderStep) -> Tensor:
    kernels, products, case, hidden = drawn.kernels, drawn.kernels.products, drawn.case, drawn.hidden

    def normed(norm: NormWeight, rows: Tensor) -> Tensor:
        return kernels.rms_norm(rows.contiguous(), norm.weight, norm.epsilon, is_offset=norm.is_offset)

    def heads(rows: Tensor, norm: NormWeight | None, dim: int) -> Tensor:
        split = rows.view(1, drawn.num_tokens, -1, dim)
        return (split if norm is None else normed(norm, split)).transpose(1, 2)

    for layer, grid in zip(drawn.layers, step.grids, strict=True):
        rows = normed(layer.input_norm, hidden)
        query, key, value = products.multiply(rows, (layer.query, layer.key, layer.value))
        queries = kernels.rotate_(heads(query, layer.query_norm, case.key_dim), step.cosines, step.sines)
        keys = kernels.rotate_(heads(key, layer.key_norm, case.key_dim), step.cosines, step.sines)
        kernels.write(grid, step.cells, keys, heads(value, None, case.value_dim))
        out = kernels.attend(grid, queries, step.tiles, How(layer.scale, layer.window, layer.softcap))
        hidden = hidden + products.multiply(out.view(1, drawn.num_tokens, -1), (layer.output,))[0]
        weights = (layer.gate, layer.up, layer.down)
        hidden = hidden + products.gated_mlp(normed(layer.inner_norm, hidden), weights, case.activation)
    return hidden[0, step.wanted]


def shape_of(case: Case) -> DecoderShape:
    heads = case.num_kv_heads * case.group
    return DecoderShape(
        case.dtype, case.activation, case.width, heads, case.num_kv_heads, case.key_dim, case.value_dim, case.inner
    )


@given(case=CASES)
@settings(deadline=None, max_examples=60)
def test_all_layers_in_one_call_give_the_numbers_of_the_kernels_one_by_one(kernels: Kernels, case: Case) -> None:
    # Given some layers, and new tokens of up to three sequences
    drawn = Drawn(kernels, case)
    apart, together = drawn.step(), drawn.step()
    # When they run one by one, and all in one call
    expected = one_by_one(drawn, apart)
    decoder = kernels.decoder(shape_of(case), drawn.layers)
    got = decoder.run_(drawn.hidden.clone(), together)[0, together.wanted]
    # Then the same K/V are written, bit by bit, and the wanted tokens come out the same, up to the order of sums
    for mine, theirs in zip(together.grids, apart.grids, strict=True):
        assert all(map(torch.equal, mine, theirs))
    close = 1e-4 if case.dtype == torch.float32 else 0.05
    torch.testing.assert_close(got, expected, rtol=close, atol=close)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threads_do_not_begin_a_stage_before_the_last_one_is_done(kernels: Kernels, num_threads: int) -> None:
    # Given layers whose every number depends on all before it, and more threads than there are cores, too
    case = replace(PLAIN, num_layers=3)
    drawn = Drawn(kernels, case)
    decoder = kernels.decoder(shape_of(case), drawn.layers)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = decoder.run_(drawn.hidden.clone(), drawn.step())
    # When they run again and again
    torch.set_num_threads(num_threads)
    try:
        again = [decoder.run_(drawn.hidden.clone(), drawn.step()) for _ in range(50)]
    finally:
        torch.set_num_threads(before)
    # Then nothing is ever read before it was written
    assert all(torch.equal(one, expected) for one in again)


PLAIN = Case(
    dtype=torch.bfloat16, num_layers=1, num_kv_heads=2, group=2, key_dim=16, value_dim=16, rotary_dim=16, width=64,
    inner=96, activation=Activation.SILU, is_offset=False, has_head_norms=True, has_bias=False, window=None,
    softcap=None, lengths=(30, 1, 9), starts=(0, 40, 7), wanted=(True, True, True),
)  # fmt: skip
