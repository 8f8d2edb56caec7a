"""Attention of the native kernels is that of torch, for every shape, length and bound, and sees nothing else."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.protocol import Sampling
from engine.generation.grid_attention import packed_attention
from engine.generation.packing import pack
from engine.generation.scheduler import Piece
from engine.generation.sequence import Sequence
from engine.kv.grid import KvGrid
from engine.native.kernels import How, Kernels

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (0.01, 1e-3)}  # relative, absolute


@dataclass(frozen=True)
class Shape:
    """pieces: for every sequence, its cached tokens and those of this step.

    dtype: that all numbers are rounded to. widened: that they are computed in; None is the same.
    """

    pieces: list[tuple[int, int]]
    num_kv_heads: int = 2
    group: int = 1
    key_dim: int = 16
    value_dim: int = 16
    window: int | None = None
    softcap: float | None = None
    dtype: torch.dtype = torch.float32
    widened: torch.dtype | None = None


shapes = st.builds(
    Shape,
    pieces=st.lists(st.tuples(st.integers(0, 90), st.one_of(st.just(1), st.integers(1, 40))), min_size=1, max_size=6),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    key_dim=st.integers(1, 70),
    value_dim=st.sampled_from([1, 8, 12, 16, 31, 64, 80]),
    window=st.sampled_from([None, 1, 5, 33, 64]),
    softcap=st.sampled_from([None, 5.0]),
    dtype=st.sampled_from(list(TOLERANCES)),
)


class Layer(nn.Module):
    layer_idx = 0


@dataclass(frozen=True)
class Heads:
    query: Tensor
    key: Tensor
    value: Tensor


def heads(shape: Shape, num_tokens: int, seed: int) -> Heads:
    """As a model lays them out: token by token, in it head by head."""
    torch.manual_seed(seed)

    def draw(num_heads: int, dim: int) -> Tensor:
        drawn = torch.randn(1, num_tokens, num_heads, dim).to(shape.dtype)
        return (drawn if shape.widened is None else drawn.to(shape.widened)).transpose(1, 2)

    return Heads(
        draw(shape.num_kv_heads * shape.group, shape.key_dim),
        draw(shape.num_kv_heads, shape.key_dim),
        draw(shape.num_kv_heads, shape.value_dim),
    )


def filled_grid(shape: Shape, kernels: Kernels | None, stale: float) -> KvGrid:
    """With the K/V of all cached tokens, and `stale` in every cell that belongs to nobody."""
    grid = KvGrid((len(shape.pieces) + 1, max(sum(piece) for piece in shape.pieces) + 3), kernels)
    num_cells = math.prod(grid.shape)
    past = heads(shape, num_cells, seed=1)
    cells = torch.arange(num_cells).view(grid.shape)
    is_past = torch.zeros(grid.shape, dtype=torch.bool)
    for row, (start, _) in enumerate(shape.pieces):
        is_past[row, :start] = True
    for tensor in (past.key, past.value):
        tensor[0, :, ~is_past.flatten()] = stale
    grid.write(0, cells.flatten(), past.key, past.value)
    return grid


def attend(shape: Shape, kernels: Kernels | None, stale: float = 0.0) -> Tensor:
    """(tokens, heads, value_dim), in the order of the packed row."""
    grid = filled_grid(shape, kernels, stale)
    pieces = []
    for row, (start, num_tokens) in enumerate(shape.pieces):
        sequence = Sequence((b"", str(row)), [0] * (start + num_tokens), Sampling(), 0, row, 0, 1)
        sequence.slot, sequence.num_cached_tokens = row, start
        pieces.append(Piece(sequence, num_tokens))
    packed = pack(pieces, grid, CPU)
    new = heads(shape, packed.input_ids.shape[1], seed=2)
    options: dict[str, Any] = {"sliding_window": shape.window, "softcap": shape.softcap, "packed": packed}
    return packed_attention(Layer(), new.query, new.key, new.value, None, scaling=0.3, **options)[0][0]


def assert_is_torchs(kernels: Kernels, shape: Shape) -> None:
    """Torch computes in float32: it would round the scores of bfloat16, the kernels do not."""
    expected = attend(replace(shape, widened=torch.float32), None).to(shape.dtype)
    relative, absolute = TOLERANCES[shape.dtype]
    torch.testing.assert_close(attend(shape, kernels), expected, rtol=relative, atol=absolute)


@given(shapes)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_that_of_torch(kernels: Kernels, shape: Shape) -> None:
    assert_is_torchs(kernels, shape)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_long_rows_and_large_tiles_are_those_of_torch(kernels: Kernels, dtype: torch.dtype) -> None:
    # Given more columns than a strip, more rows than a block, more tokens than a tile, and wide heads
    shape = Shape([(700, 1), (0, 300), (250, 65), (3, 1)], 2, 4, 128, 128, dtype=dtype)
    # Then nothing changes
    assert_is_torchs(kernels, shape)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("window", [None, 40])
def test_cells_of_nobody_are_never_looked_at(kernels: Kernels, dtype: torch.dtype, window: int | None) -> None:
    # Given rows of different lengths
    shape = Shape([(33, 1), (70, 1), (0, 20), (50, 17)], group=3, window=window, dtype=dtype)
    # When what lies behind and beside them is NaN
    answers = attend(shape, kernels, stale=math.nan)
    # Then nobody notices
    torch.testing.assert_close(answers, attend(shape, kernels, stale=0.0), rtol=0, atol=0)


def test_a_nan_among_the_keys_of_a_sequence_shows_in_its_own_answers_and_in_no_others(kernels: Kernels) -> None:
    # Given two sequences that decode, one of which has a NaN in its past
    shape = Shape([(40, 1), (40, 1)])
    grid = filled_grid(shape, kernels, stale=0.0)
    grid.keys(0)[1, 7, 0, 3] = math.nan
    tiles = torch.tensor([[0, 1, 0, 39], [1, 1, 1, 39]])
    query = heads(shape, 2, seed=3).query
    # When both attend

    out = kernels.attend((grid.keys(0), grid.values(0)), query, tiles, How(0.3))
    # Then only that sequence is spoiled, and not silently
    assert out[0].isfinite().all()
    assert out[1, 0].isnan().all()


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(kernels: Kernels, num_threads: int) -> None:
    # Given a step of many tiles
    shape = Shape([(start, 1) for start in range(0, 90, 7)] + [(0, 100)], group=3)
    expected = attend(shape, kernels)
    before = torch.get_num_threads()
    # When another number of threads shares them
    torch.set_num_threads(num_threads)
    try:
        again = attend(shape, kernels)
    finally:
        torch.set_num_threads(before)
    # Then not a bit differs
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


def test_scores_far_apart_do_not_overflow(kernels: Kernels) -> None:
    # Given queries and keys whose products are in the thousands
    shape = Shape([(64, 1)])
    grid = filled_grid(shape, kernels, stale=0.0)
    query = heads(shape, 1, seed=3).query * 1000

    # When it attends
    out = kernels.attend((grid.keys(0), grid.values(0)), query, torch.tensor([[0, 1, 0, 63]]), How(1.0))
    # Then every head takes the value of its best column
    scores = torch.einsum("hd,chd->hc", query[0, :, 0], grid.keys(0)[0, :64])
    expected = grid.values(0)[0, scores.argmax(1), torch.arange(2)]
    torch.testing.assert_close(out[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_go_through_torch(kernels: Kernels, dtype: torch.dtype) -> None:
    # Given a precision that the kernels do not know
    shape = Shape([(20, 1), (0, 9)], group=2, dtype=dtype)
    # Then the answer is torch's, to the bit
    torch.testing.assert_close(attend(shape, kernels), attend(shape, None), rtol=0, atol=0)
