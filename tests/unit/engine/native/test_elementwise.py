"""The elementwise kernels compute what transformers' own modules compute, rounded where those round."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from engine.native.kernels import Kernels
from engine.native.products import Activation

DTYPES = [torch.float32, torch.bfloat16]
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 0.01}  # one bit, where a sum in another order crosses a rounding
dims = st.one_of(st.integers(1, 200), st.just(576))
laws = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=RELATIVE[result.dtype], atol=4e-6)


def draw(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    torch.manual_seed(sum(shape))
    return (torch.randn(shape) * scale).to(dtype)


@given(st.integers(1, 40), dims, st.sampled_from(DTYPES))
@laws
@torch.inference_mode()
def test_the_norm_is_llamas(kernels: Kernels, num_rows: int, dim: int, dtype: torch.dtype) -> None:
    # Given Llama's module with weights
    module = LlamaRMSNorm(dim, eps=1e-5)
    module.weight.data = draw(dim, dtype=dtype)
    x = draw(1, num_rows, dim, dtype=dtype, scale=3.0)
    # Then the kernel computes the same
    assert_close(kernels.rms_norm(x, module.weight, 1e-5), module(x))


@given(st.integers(1, 40), dims, st.sampled_from(DTYPES))
@laws
@torch.inference_mode()
def test_the_norm_with_an_offset_is_gemmas(kernels: Kernels, num_rows: int, dim: int, dtype: torch.dtype) -> None:
    # Given Gemma's module, whose weights are distances from one
    module = Gemma3RMSNorm(dim, eps=1e-6)
    module.weight.data = draw(dim, dtype=dtype)
    x = draw(1, num_rows, dim, dtype=dtype, scale=3.0)
    # Then the kernel computes the same
    assert_close(kernels.rms_norm(x, module.weight, 1e-6, is_offset=True), module(x))


def test_rows_of_a_wider_matrix_are_normalised_in_their_place(kernels: Kernels) -> None:
    # Given the middle part of every row of a matrix
    part = draw(9, 120, dtype=torch.float32)[:, 40:80]
    weight = draw(40, dtype=torch.float32)
    # Then only that part counts
    torch.testing.assert_close(
        kernels.rms_norm(part, weight, 1e-6), kernels.rms_norm(part.clone(), weight, 1e-6), rtol=0, atol=0
    )


@given(st.integers(1, 40), dims, st.sampled_from(DTYPES), st.sampled_from(Activation))
@laws
def test_the_gated_activation_is_torchs(
    kernels: Kernels, num_rows: int, dim: int, dtype: torch.dtype, activation: Activation
) -> None:
    # Given gate and up as halves of one product
    product = draw(1, num_rows, 2 * dim, dtype=dtype, scale=4.0)
    gate, up = product[..., :dim], product[..., dim:]
    # Then the kernel computes what the two operations would
    plain = functional.silu(gate) if activation is Activation.SILU else functional.gelu(gate, approximate="tanh")
    torch.testing.assert_close(
        kernels.gated(gate, up, activation), plain * up, rtol=RELATIVE[dtype], atol=4e-5
    )  # torch's own gelu cancels where it is nearly zero


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_activation_is_right_at_its_ends(kernels: Kernels, dtype: torch.dtype) -> None:
    # Given gates from far below to far above zero, and what is no number
    gate = torch.tensor([-1e30, -200.0, -90.0, -1e-30, 0.0, 90.0, 1e30, float("nan")], dtype=dtype)
    # Then nothing overflows, and NaN stays NaN
    torch.testing.assert_close(
        kernels.gated(gate[None], torch.ones_like(gate)[None])[0],
        functional.silu(gate),
        rtol=1e-6,
        atol=1e-8,
        equal_nan=True,
    )


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 70), st.sampled_from(DTYPES))
@laws
def test_the_rotation_is_llamas(
    kernels: Kernels, num_tokens: int, num_heads: int, half: int, dtype: torch.dtype
) -> None:
    # Given heads as a model lays them out, and angles
    heads = draw(1, num_tokens, num_heads, 2 * half, dtype=dtype).transpose(1, 2)
    cosines, sines = (draw(1, num_tokens, 2 * half + extra, dtype=dtype)[..., : 2 * half] for extra in (2, 2))
    expected, _ = apply_rotary_pos_emb(heads, heads, cosines, sines)
    # When they are turned in place
    turned = kernels.rotate_(heads, cosines, sines)
    # Then they are transformers' heads
    assert turned is heads
    assert_close(turned, expected)


def test_only_the_turned_part_of_a_head_changes(kernels: Kernels) -> None:
    # Given heads of 24 numbers and angles for 16
    heads = draw(1, 7, 3, 24, dtype=torch.float32).transpose(1, 2)
    cosines, sines = draw(1, 7, 16, dtype=torch.float32), draw(1, 7, 16, dtype=torch.float32).cos()
    expected, _ = apply_rotary_pos_emb(heads[..., :16], heads[..., :16], cosines, sines)
    rest = heads[..., 16:].clone()
    # When they are turned
    kernels.rotate_(heads, cosines, sines)
    # Then the rest stays
    torch.testing.assert_close(heads[..., :16], expected)
    torch.testing.assert_close(heads[..., 16:], rest, rtol=0, atol=0)


def test_what_the_kernels_do_not_know_is_not_fit(kernels: Kernels) -> None:
    x = torch.ones(2, 4)
    assert kernels.can_take(x, x)
    assert not kernels.can_take(x.half())
    assert not kernels.can_take(x, x.bfloat16())
    assert not kernels.can_take(x.T)
    assert not kernels.can_take(x.to("meta"))
