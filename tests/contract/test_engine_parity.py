"""The engine's greedy answers are those of transformers' `generate`, token for token, in float32."""

from typing import Any

import pytest

from core.protocol import Sampling
from tests.engine_harness import CLIENT, Harness, own_answer, random_prompt
from tests.engine_models import CONFIGS, END_ID, tiny_model

# One token up to five times the prefill budget, neighbours and repetitions, more than there are slots.
LENGTHS = (1, 2, 3, 31, 32, 33, 64, 150, 7, 20, 90, 1, 5, 12)
NUM_SLOTS = 4
PREFILL_TOKENS = 32


def num_answer_tokens(index: int) -> int:
    return 40 + 3 * index


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_answers_equal_generate_whatever_runs_beside_them(kind: str) -> None:
    # Given prompts of very different lengths and what the model answers to each alone
    prompts = [random_prompt(length, seed=index) for index, length in enumerate(LENGTHS)]
    reference = tiny_model(kind)
    expected = [own_answer(reference, prompt, num_answer_tokens(index)) for index, prompt in enumerate(prompts)]
    harness = Harness(tiny_model(kind), num_slots=NUM_SLOTS, prefill_tokens=PREFILL_TOKENS)
    # When they join at different steps, while others are cancelled in mid-prompt and in mid-answer
    for index, prompt in enumerate(prompts):
        harness.submit(str(index), prompt, Sampling(temperature=0, max_tokens=num_answer_tokens(index)))
        harness.submit(f"cancelled-{index}", random_prompt(50, seed=99), Sampling(temperature=0))
        for _ in range(index % 4):
            harness.step()
        if index >= 2:
            harness.generator.cancel((CLIENT, f"cancelled-{index - 2}"))
    for index in range(len(prompts)):
        harness.generator.cancel((CLIENT, f"cancelled-{index}"))
    harness.run()
    # Then every answer is the model's own, and it wandered through the vocabulary
    assert [harness.answer(str(index)) for index in range(len(prompts))] == expected
    assert sum(len(set(answer)) >= 16 for answer in expected) >= len(expected) - 3
    assert max(len(set(answer)) for answer in expected) >= 20


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_stay_right_when_memory_forces_sequences_to_give_way(kind: str) -> None:
    # Given K/V memory for 640 tokens, two rows of 256 columns, and four sequences that outgrow them
    model, reference = tiny_model(kind), tiny_model(kind)
    heads = 2 if kind == "llama" else 4
    bytes_per_token = 3 * 2 * heads * 12 * 4
    harness = Harness(model, num_slots=4, prefill_tokens=64, kv_bytes=640 * bytes_per_token)
    prompts = [random_prompt(length, seed=5) for length in (200, 10, 180, 230)]
    # When they run
    for index, prompt in enumerate(prompts):
        harness.submit(str(index), prompt, Sampling(temperature=0, max_tokens=90, ignore_eos=True))
    harness.run()
    # Then nothing is lost and nothing is wrong
    expected = [_without_end(reference, prompt, 90) for prompt in prompts]
    assert [harness.answer(str(index)) for index in range(4)] == expected


def _without_end(reference: Any, prompt: list[int], num_tokens: int) -> list[int]:
    reference.generation_config.eos_token_id = None
    return own_answer(reference, prompt, num_tokens)


def test_the_end_token_ends_an_answer_as_it_does_in_generate() -> None:
    # Given a model whose greedy answer meets its end token
    reference = tiny_model("llama")
    candidates = (random_prompt(length, seed=seed) for seed in range(40) for length in (4, 9))
    prompt, expected = next(
        (prompt, answer) for prompt in candidates if len(answer := own_answer(reference, prompt, 60)) < 60
    )
    harness = Harness(tiny_model("llama"), num_slots=2)
    # When it answers
    harness.submit("ends", prompt, Sampling(temperature=0, max_tokens=60))
    harness.submit("goes on", prompt, Sampling(temperature=0, max_tokens=60, ignore_eos=True))
    harness.run()
    # Then the answer ends there, unless it was told to go on
    assert harness.answer("ends") == expected
    assert harness.answer("goes on")[: len(expected) + 1] == [*expected, END_ID]
    assert len(harness.answer("goes on")) == 60
