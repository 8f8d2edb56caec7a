"""A model answers the same with the native kernels and without them."""

import pytest

from core.protocol import Sampling
from engine.native.kernels import Kernels
from tests.engine_harness import Harness, own_answer, random_prompt
from tests.engine_models import tiny_model

LENGTHS = (1, 45, 17, 33)
NUM_ANSWER_TOKENS = 24


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("native", [True, False])
def test_answers_are_the_models_own(kernels: Kernels, kind: str, native: bool) -> None:
    # Given prompts of different lengths, in pieces and side by side
    prompts = [random_prompt(length, seed=7) for length in LENGTHS]
    expected = [own_answer(tiny_model(kind), prompt, NUM_ANSWER_TOKENS) for prompt in prompts]
    harness = Harness(tiny_model(kind), num_slots=3, prefill_tokens=20, native=native)
    # When they are answered
    for index, prompt in enumerate(prompts):
        harness.submit(str(index), prompt, Sampling(temperature=0, max_tokens=NUM_ANSWER_TOKENS))
    harness.run()
    # Then each answer is the model's own
    assert [harness.answer(str(index)) for index in range(len(prompts))] == expected
