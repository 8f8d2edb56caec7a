"""The Triton kernels of elementwise layers against transformers' own code, run by Triton's interpreter on the CPU.

Triton must find TRITON_INTERPRET=1 when it is imported, so `test_elementwise.py` runs this file in its own process.
"""

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from core.errors import ModelFailure
from engine.gpu import elementwise
from engine.gpu.elementwise import GpuElementwise
from engine.models.layers.substitution import use_native_layers
from engine.models.probe import difference, far_logits, own_logits
from engine.native.kernels import Kernels
from tests.engine_models import tiny_model
from tests.unit.engine.models.layers.interleaved import INTERLEAVED, interleaved_model

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = st.sampled_from(list(TOLERANCE))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    limit = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=limit, atol=limit)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 5), st.integers(1, 70), st.booleans(), DTYPES)
def test_a_norm_is_that_of_transformers(num_rows: int, width: int, is_offset: bool, dtype: torch.dtype) -> None:
    # Given
    norm: Any = (GemmaRMSNorm if is_offset else LlamaRMSNorm)(width)
    norm.weight.data = torch.randn(width)
    norm = norm.to(dtype)
    rows = torch.randn((2, num_rows, width)).to(dtype)
    epsilon = norm.eps if is_offset else norm.variance_epsilon
    # When
    normed = GpuElementwise("cpu").rms_norm(rows, norm.weight, epsilon, is_offset=is_offset)
    # Then
    assert_close(normed, norm(rows))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 20), DTYPES)
def test_a_rotation_is_that_of_transformers(heads: int, num_tokens: int, half: int, dtype: torch.dtype) -> None:
    # Given heads as a projection leaves them
    query = torch.randn((1, num_tokens, heads, 2 * half)).to(dtype).transpose(1, 2)
    cosines, sines = torch.randn((2, 1, num_tokens, 2 * half)).to(dtype)
    expected, _ = apply_rotary_pos_emb(query, query, cosines, sines)
    # When
    turned = GpuElementwise("cpu").rotate_(query, cosines, sines)
    # Then
    assert_close(turned, expected)


@pytest.mark.parametrize(("kind", "num_norms"), [("llama", 7), ("qwen3", 13), ("gemma2", 13)])
def test_norms_and_rotations_of_a_model_are_replaced_and_change_nothing(kind: str, num_norms: int) -> None:
    # Given
    model = tiny_model(kind)
    own = own_logits(model)
    # When
    findings = use_native_layers(kind, model, cast("Kernels", GpuElementwise("cpu")))
    # Then
    assert findings.replaced == {"norms": num_norms, "rotations": 3}
    assert not findings.refused
    for ours, expected in zip(own_logits(model), own, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_model_in_float16_is_served_by_the_kernels() -> None:
    # Given
    model = tiny_model("llama").to(torch.float16)
    own = own_logits(model)
    # When
    findings = use_native_layers("half", model, cast("Kernels", GpuElementwise("cpu")))
    # Then
    assert findings.replaced == {"norms": 7, "rotations": 3}
    for ours, expected in zip(own_logits(model), own, strict=True):
        assert difference(ours, expected) < 0.02


@pytest.mark.parametrize("kind", INTERLEAVED)
def test_models_that_rotate_neighbours_keep_their_rotation(kind: str) -> None:
    # Given
    model = interleaved_model(kind)
    own = far_logits(model)
    # When
    findings = use_native_layers(kind, model, cast("Kernels", GpuElementwise("cpu")))
    # Then
    assert "rotations" not in findings.replaced
    assert sum(number for (what, _), number in findings.refused.items() if what == "rotations") == 3
    torch.testing.assert_close(far_logits(model), own, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_does_not_compile_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a machine where Triton cannot build its launcher
    class Broken:
        def __getitem__(self, grid: object) -> Any:
            raise RuntimeError("Python.h: no such file")

    monkeypatch.setattr(elementwise, "rms_norm_kernel", Broken())
    # Then the model is refused, not served slowly without a word
    with pytest.raises(ModelFailure, match=r"Python\.h.*--no-native"):
        use_native_layers("broken", tiny_model("llama"), cast("Kernels", GpuElementwise("cpu")))
