"""Products with packed weights are those of plain torch, whatever the shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from engine.native.kernels import Kernels
from engine.native.products import Activation

DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.02}
ACTIVATIONS = {
    Activation.SILU: functional.silu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
}


def drawn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    num_rows=st.integers(0, 40),
    half_depth=st.integers(1, 40),
    columns=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    has_bias=st.booleans(),
)
@settings(deadline=None)
def test_every_layer_that_reads_the_same_rows_gets_the_product_of_torch(
    kernels: Kernels, num_rows: int, half_depth: int, columns: list[int], dtype: torch.dtype, has_bias: bool
) -> None:
    # Given rows and one to four weights, with or without a bias
    depth = 2 * half_depth
    rows = drawn(1, num_rows, depth, dtype=dtype, seed=0)
    weights = [drawn(width, depth, dtype=dtype, seed=1 + index) for index, width in enumerate(columns)]
    biases = [drawn(width, dtype=dtype, seed=9) if has_bias else None for width in columns]
    # When all are multiplied at once
    packed = [kernels.products.pack(*pair) for pair in zip(weights, biases, strict=True)]
    products = kernels.products.multiply(rows, packed)
    # Then each has its own, side by side in memory
    for weight, bias, product in zip(weights, biases, products, strict=True):
        torch.testing.assert_close(product, functional.linear(rows, weight, bias), rtol=CLOSE[dtype], atol=CLOSE[dtype])
        assert product.is_contiguous()


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_are_cut_into_blocks_without_a_seam(kernels: Kernels, dtype: torch.dtype, num_threads: int) -> None:
    # Given more rows than stay in a processor's cache, and two threads
    rows = drawn(523, 1024, dtype=dtype, seed=0)
    weight = drawn(80, 1024, dtype=dtype, seed=1) / 16
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        product = kernels.products.multiply(rows, [kernels.products.pack(weight, None)])[0]
    finally:
        torch.set_num_threads(before)
    # Then nothing is missing and nothing is there twice
    torch.testing.assert_close(product, functional.linear(rows, weight), rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart(kernels: Kernels, dtype: torch.dtype) -> None:
    wide = drawn(6, 48, dtype=dtype, seed=0)
    weight = drawn(20, 32, dtype=dtype, seed=1)
    packed = [kernels.products.pack(weight, None)]
    for rows in (wide[:, :32], wide[::2, 8:40], wide[:1, :32], drawn(32, 6, dtype=dtype, seed=2).T):
        torch.testing.assert_close(
            kernels.products.multiply(rows, packed)[0],
            functional.linear(rows, weight),
            rtol=CLOSE[dtype],
            atol=CLOSE[dtype],
        )


@given(
    num_rows=st.integers(0, 30),
    half_depth=st.integers(1, 24),
    half_inner=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(list(Activation)),
)
@settings(deadline=None)
def test_a_gated_layer_is_that_of_torch(
    kernels: Kernels, num_rows: int, half_depth: int, half_inner: int, dtype: torch.dtype, activation: Activation
) -> None:
    # Given the three weights of a gated layer
    depth, inner = 2 * half_depth, 2 * half_inner
    rows = drawn(num_rows, depth, dtype=dtype, seed=0)
    gate, up = (drawn(inner, depth, dtype=dtype, seed=seed) / depth**0.5 for seed in (1, 2))
    down = drawn(depth, inner, dtype=dtype, seed=3) / inner**0.5
    # When it is computed in one go
    packed = tuple(kernels.products.pack(weight, None) for weight in (gate, up, down))
    assert len(packed) == 3
    product = kernels.products.gated_mlp(rows, packed, activation)
    # Then it is what torch computes in four
    between = ACTIVATIONS[activation](functional.linear(rows, gate)) * functional.linear(rows, up)
    torch.testing.assert_close(product, functional.linear(between, down), rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.zeros(4, 6, dtype=torch.float16), None),
        (torch.zeros(4, 6, dtype=torch.int8), None),
        (torch.zeros(4, 7, dtype=torch.bfloat16), None),
        (torch.zeros(4, 6, device="meta"), None),
        (torch.zeros(0, 6), None),
        (torch.zeros(4, 6, dtype=torch.bfloat16), torch.zeros(4)),
    ],
)
def test_weights_that_do_not_fit_are_not_packed(kernels: Kernels, weight: Tensor, bias: Tensor | None) -> None:
    assert not kernels.products.can_pack(weight, bias)


@pytest.mark.parametrize("rows", [torch.zeros(3, 6, dtype=torch.bfloat16), torch.zeros(3, 8)])
def test_rows_of_another_kind_are_refused_before_memory_is_read(kernels: Kernels, rows: Tensor) -> None:
    packed = kernels.products.pack(torch.zeros(4, 6), None)
    with pytest.raises(RuntimeError, match=r"expected rows of 6 numbers in torch\.float32"):
        kernels.products.multiply(rows, [packed])
