"""A model's rotation becomes the kernel's where both are the same, compared where the kernel runs."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import rotate_half

from core.errors import ModelFailure
from core.protocol import Sampling
from engine.models.layers.agreement import Findings
from engine.models.layers.rotation import rotate_natively
from engine.models.probe import far_logits
from engine.native.kernels import Kernels
from tests.engine_harness import Harness, own_answer, random_prompt
from tests.engine_models import END_ID, tiny_model
from tests.unit.engine.models.layers.interleaved import INTERLEAVED, interleaved_model


class ChoosyKernels:
    """As a GPU's kernels, which take nothing that lies on the CPU: these take one dtype, which is the model's own."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def can_take(self, *tensors: Tensor) -> bool:
        return all(tensor.dtype == self.dtype for tensor in tensors)

    def rotate_(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        turned: Tensor = rotate_half(heads)  # type: ignore[no-untyped-call]
        return heads.copy_(heads * cosines[:, None] + turned * sines[:, None])


class BrokenKernels(ChoosyKernels):
    def rotate_(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        raise RuntimeError("fatal error: Python.h: no such file")


def rotated(model: Any, kernels: ChoosyKernels) -> Findings:
    findings = Findings()
    rotate_natively("tiny", model, cast("Kernels", kernels), findings)
    return findings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", INTERLEAVED)
def test_neighbours_are_not_taken_for_halves_by_kernels_that_decline_tensors_from_elsewhere(
    kind: str, dtype: torch.dtype
) -> None:
    # Given a model that rotates neighbours, and kernels that take its tensors only
    model = interleaved_model(kind).to(dtype)
    # When its rotation is compared with theirs
    findings = rotated(model, ChoosyKernels(dtype))
    # Then it is found to be another one, and the layers keep theirs
    assert not findings.replaced
    [((what, reason), number)] = findings.refused.items()
    assert (what, number) == ("rotations", 3)
    assert "computes something else" in reason
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_recognised_by_the_same_kernels(dtype: torch.dtype) -> None:
    findings = rotated(tiny_model("llama").to(dtype), ChoosyKernels(dtype))
    assert findings.replaced == {"rotations": 3}
    assert not findings.refused


def test_a_rotation_that_the_kernels_would_never_run_counts_as_refused_and_not_as_equal() -> None:
    # Given kernels that take nothing of this model
    findings = rotated(tiny_model("llama"), ChoosyKernels(torch.bfloat16))
    # Then
    assert not findings.replaced
    assert findings.refused == {("rotations", "the kernel does not take torch.float32 on cpu"): 3}


def test_a_layer_with_a_forward_of_its_own_stays_and_is_counted() -> None:
    # Given one of three layers that somebody changed
    model = tiny_model("llama")
    attention: nn.Module = model.model.layers[1].self_attn
    attention.forward = own = attention.forward
    # When
    findings = rotated(model, ChoosyKernels(torch.float32))
    # Then
    assert findings.replaced == {"rotations": 2}
    assert findings.refused == {("rotations", "somebody gave it another forward"): 1}
    assert attention.forward is own


def test_a_kernel_that_cannot_run_is_told_with_the_way_out() -> None:
    with pytest.raises(ModelFailure, match=r"tiny: .*Python\.h.*--no-native.*MILLRACE_ENGINE_KERNELS=torch"):
        rotated(tiny_model("llama"), BrokenKernels(torch.float32))


def test_far_apart_positions_show_a_wrong_rotation() -> None:
    # Given a model that is made to turn the other way
    model = tiny_model("llama")
    own = far_logits(model)
    rotary = model.model.rotary_emb
    rotary.register_forward_hook(lambda _module, _arguments, angles: (angles[0], -angles[1]))
    # Then the far logits differ widely
    assert float((far_logits(model) - own).norm() / own.norm()) > 0.3


@pytest.mark.parametrize("kv", ["rows", "pages"])
@pytest.mark.parametrize("kind", INTERLEAVED)
def test_models_that_rotate_neighbours_answer_as_by_themselves(kind: str, kv: str) -> None:
    # Given
    prompts = [random_prompt(length, seed=3) for length in (5, 40, 21)]
    own = [own_answer(interleaved_model(kind), prompt, 12) for prompt in prompts]
    expected = [[token for token in answer if token != END_ID] for answer in own]
    harness = Harness(interleaved_model(kind), num_slots=2, prefill_tokens=16, kv=kv)
    # When
    for index, prompt in enumerate(prompts):
        harness.submit(str(index), prompt, Sampling(temperature=0, max_tokens=12))
    harness.run()
    # Then
    assert [harness.answer(str(index)) for index in range(3)] == expected
