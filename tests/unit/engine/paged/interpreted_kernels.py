"""The Triton kernels against attention in plain torch, run by Triton's interpreter on the CPU.

Triton must find TRITON_INTERPRET=1 when it is imported, so `test_kernels.py` runs this file in a process of its own.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.paged import attention
from engine.paged.reference import ReferenceKernels
from engine.paged.runner import Limits, PagedRunner
from engine.paged.storage import PagedStorage
from engine.paged.triton_attention import TritonKernels
from tests.engine_harness import random_prompt
from tests.engine_models import tiny_model
from tests.unit.engine.paged.pages import Layer, Shape, sequence, take, whole

# Rounding of the result, and of the weights before they are multiplied with the values.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

SHAPES = {
    "one token": Shape(lengths=(1,), num_new=(1,)),
    "a page and less and more": Shape(lengths=(8, 7, 9, 16, 33), num_new=(8, 3, 1, 16, 20)),
    "more than a tile": Shape(lengths=(150, 65, 64), num_new=(130, 1, 64)),
    "one head": Shape(lengths=(20, 3), num_new=(5, 3), kv_heads=1, group=1),
    "a group of three": Shape(lengths=(20, 70), num_new=(5, 70), group=3),
    "a group larger than a tile": Shape(lengths=(9, 70), num_new=(2, 7), kv_heads=1, group=20),
    "dims that are no powers of two": Shape(lengths=(20, 70), num_new=(5, 70), key_dim=24, value_dim=12),
    "values wider than keys": Shape(lengths=(20, 70), num_new=(5, 70), key_dim=12, value_dim=40),
    "a sliding window": Shape(lengths=(5, 11, 12, 100), num_new=(5, 2, 12, 90), window=11),
    "a window of one": Shape(lengths=(5, 100), num_new=(5, 90), window=1),
    "a softcap": Shape(lengths=(20, 70), num_new=(5, 70), softcap=0.5),
    "a window and a softcap": Shape(lengths=(20, 70), num_new=(5, 70), window=9, softcap=20.0),
    "splits": Shape(lengths=(200, 1, 64, 65), num_new=(1, 1, 1, 1), num_splits=3),
    "splits under a window": Shape(lengths=(200, 1, 64, 65), num_new=(1, 1, 1, 1), num_splits=4, window=70),
    "large pages": Shape(lengths=(20, 70), num_new=(5, 70), page_size=32),
    "bfloat16": Shape(lengths=(20, 70), num_new=(5, 70), dtype=torch.bfloat16, num_splits=2),
    "float16": Shape(lengths=(20, 70), num_new=(5, 70), dtype=torch.float16, num_splits=2),
    "bfloat16, odd, capped": Shape(
        lengths=(30, 9), num_new=(11, 9), key_dim=20, value_dim=20, window=13, softcap=5.0, dtype=torch.bfloat16
    ),
}


def assert_kernels_agree(shape: Shape) -> None:
    layer = Layer(shape)
    ours, reference = TritonKernels(), ReferenceKernels()
    ours.write(layer.cells, layer.key, layer.value, layer.pages)
    call, batch = layer.call(len(shape.lengths)), layer.decode_batch()
    assert_close(ours.decode(call, batch), reference.decode(call, batch))
    call, prompts = layer.call(sum(shape.num_new)), layer.prompt_batch()
    assert_close(ours.prompts(call, prompts), reference.prompts(call, prompts))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert expected.isfinite().all()
    limit = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernels_compute_what_plain_torch_does_and_read_no_stale_cell(shape: Shape) -> None:
    assert_kernels_agree(shape)


@pytest.mark.parametrize("shape", [SHAPES["dims that are no powers of two"], SHAPES["bfloat16"]], ids=str)
def test_new_keys_and_values_land_in_their_cells_and_nowhere_else(shape: Shape) -> None:
    # Given pages full of NaN
    layer = Layer(shape)
    expected = (layer.pages[0].clone(), layer.pages[1].clone())
    ReferenceKernels().write(layer.cells, layer.key, layer.value, expected)
    # When the kernel writes
    TritonKernels().write(layer.cells, layer.key, layer.value, layer.pages)
    # Then they are those that plain torch leaves, bit by bit
    for own, wanted in zip(layer.pages, expected, strict=True):
        assert torch.equal(own.nan_to_num(-7.0), wanted.nan_to_num(-7.0))
        assert own.isnan().sum() == wanted.isnan().sum() > 0


def test_a_nan_in_a_sequence_shows_in_its_own_result_alone() -> None:
    # Given two sequences, the first with a NaN among its keys
    layer = Layer(Shape(lengths=(40, 40), num_new=(1, 1)))
    TritonKernels().write(layer.cells, layer.key, layer.value, layer.pages)
    layer.pages[0].flatten(0, 1)[layer.cells[7]] = math.nan
    # When both decode
    result = TritonKernels().decode(layer.call(2), layer.decode_batch())
    # Then
    assert result[0].isnan().all()
    assert result[1].isfinite().all()


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    lengths = draw(st.lists(st.integers(1, 90), min_size=1, max_size=3))
    return Shape(
        lengths=tuple(lengths),
        num_new=tuple(draw(st.integers(1, length)) for length in lengths),
        kv_heads=draw(st.integers(1, 2)),
        group=draw(st.integers(1, 5)),
        key_dim=4 * draw(st.integers(1, 9)),
        value_dim=4 * draw(st.integers(1, 9)),
        page_size=2 ** draw(st.integers(0, 5)),
        window=draw(st.none() | st.integers(1, 100)),
        softcap=draw(st.none() | st.floats(0.5, 50.0)),
        dtype=draw(st.sampled_from(list(TOLERANCE))),
        num_splits=draw(st.integers(1, 5)),
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(shapes())
def test_kernels_compute_what_plain_torch_does_for_any_shape(shape: Shape) -> None:
    assert_kernels_agree(shape)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_model_decodes_through_the_kernels_as_through_plain_torch(kind: str) -> None:
    # Given a prompt that is prefilled beside another, and three tokens that follow
    answers = []
    for kernels in (TritonKernels(), ReferenceKernels()):
        runner = paged_runner(kind, kernels)
        one, other = sequence(random_prompt(40), [1, 0]), sequence(random_prompt(9), [2])
        # When
        for _ in range(4):
            for sampled in runner.launch([whole(one), whole(other)]).result():
                take(sampled.sequence, sampled.token_id)
        answers.append([one.answer_ids, other.answer_ids])
    # Then
    assert answers[0] == answers[1]
    assert len({token for answer in answers[0] for token in answer}) > 4


def paged_runner(kind: str, kernels: TritonKernels | ReferenceKernels) -> PagedRunner:
    attention.register()
    model = tiny_model(kind)
    model.set_attn_implementation(attention.ATTENTION_NAME)
    return PagedRunner(model, PagedStorage(3, torch.device("cpu")), kernels, Limits(2, 64, 0))
