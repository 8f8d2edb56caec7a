"""Weights in the CPU's own order compute the same product."""

import pytest
import torch
from torch import nn

from core.protocol import Sampling
from engine.models.linear import PackedLinear, pack_linears
from tests.engine_harness import Harness, random_prompt
from tests.engine_models import tiny_model

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU does not multiply bfloat16 by itself"
)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 32, 300])
@pytest.mark.parametrize("has_bias", [True, False])
@torch.inference_mode()
def test_the_product_is_that_of_the_plain_layer(num_rows: int, has_bias: bool) -> None:
    # Given a layer in bfloat16
    torch.manual_seed(0)
    linear = nn.Linear(48, 96, bias=has_bias, dtype=torch.bfloat16)
    rows = torch.randn(1, num_rows, 48, dtype=torch.bfloat16)
    # Then the packed layer rounds the same sums
    torch.testing.assert_close(PackedLinear(linear)(rows), linear(rows), rtol=0.01, atol=0.01)


def test_a_model_in_bfloat16_is_packed_and_its_embedding_keeps_its_weights() -> None:
    # Given a model whose output layer shares its weights with the embedding
    model = tiny_model("llama", tie_word_embeddings=True).to(torch.bfloat16)
    # When it is packed
    num_packed = pack_linears(model)
    # Then all its linear layers are (7 in each of 3 blocks, and the last), and it can still embed
    assert num_packed == 22
    assert model.get_input_embeddings().weight.shape == (320, 48)
    assert not any(type(module) is nn.Linear for module in model.modules())


def test_a_model_in_float32_stays_as_it_is() -> None:
    assert pack_linears(tiny_model("llama")) == 0


def test_a_packed_model_answers_and_ends() -> None:
    # Given a model in bfloat16, whose probe compares packed attention with its own
    harness = Harness(tiny_model("qwen3").to(torch.bfloat16), num_slots=3, prefill_tokens=16)
    # When more requests than slots run
    for number in range(5):
        sampling = Sampling(max_tokens=12, temperature=0, ignore_eos=True)
        harness.submit(str(number), random_prompt(20 + number), sampling)
    harness.run()
    # Then all are answered in full
    assert [len(harness.answer(str(number))) for number in range(5)] == [12] * 5
