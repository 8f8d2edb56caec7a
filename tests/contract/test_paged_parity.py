"""With K/V in pages the engine's greedy answers are those of transformers' `generate` too, token for token, in float32.

What runs here on a CPU is what a GPU runs, but for kernels, graphs and streams: padded batches over static buffers, a
step launched before the tokens of the one before are read.
"""

from typing import Any

import pytest

from core.protocol import Finished, Sampling
from tests.contract.test_engine_parity import LENGTHS, NUM_SLOTS, PREFILL_TOKENS, num_answer_tokens
from tests.engine_harness import CLIENT, Harness, own_answer, random_prompt
from tests.engine_models import CONFIGS, tiny_model

AHEAD = pytest.mark.parametrize("num_ahead", [0, 1], ids=["step by step", "one step ahead"])


def paged(model: Any, num_ahead: int, **options: Any) -> Harness:
    return Harness(model, kv="pages", num_ahead=num_ahead, **options)


@pytest.mark.parametrize(("kind", "num_ahead"), [("llama", 0), *((kind, 1) for kind in CONFIGS)])
def test_greedy_answers_equal_generate_whatever_runs_beside_them(kind: str, num_ahead: int) -> None:
    # Given prompts of very different lengths and what the model answers to each alone
    prompts = [random_prompt(length, seed=index) for index, length in enumerate(LENGTHS)]
    reference = tiny_model(kind)
    expected = [own_answer(reference, prompt, num_answer_tokens(index)) for index, prompt in enumerate(prompts)]
    harness = paged(tiny_model(kind), num_ahead, num_slots=NUM_SLOTS, prefill_tokens=PREFILL_TOKENS)
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
    # Then every answer is the model's own
    assert [harness.answer(str(index)) for index in range(len(prompts))] == expected
    assert sum(len(set(answer)) >= 16 for answer in expected) >= len(expected) - 3


@AHEAD
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_stay_right_when_memory_forces_sequences_to_give_way(kind: str, num_ahead: int) -> None:
    # Given pages for 640 tokens, and four sequences that outgrow them
    reference = tiny_model(kind)
    reference.generation_config.eos_token_id = None
    heads = 2 if kind == "llama" else 4
    bytes_per_token = 3 * 2 * heads * 12 * 4
    harness = paged(tiny_model(kind), num_ahead, num_slots=4, prefill_tokens=64, kv_bytes=640 * bytes_per_token)
    prompts = [random_prompt(length, seed=5) for length in (200, 10, 180, 230)]
    # When they run
    for index, prompt in enumerate(prompts):
        harness.submit(str(index), prompt, Sampling(temperature=0, max_tokens=90, ignore_eos=True))
    harness.run()
    # Then nothing is lost and nothing is wrong
    assert [harness.answer(str(index)) for index in range(4)] == [own_answer(reference, p, 90) for p in prompts]


@AHEAD
def test_a_prefix_that_is_known_is_not_computed_again_and_changes_no_answer(num_ahead: int) -> None:
    # Given a prompt that was answered
    reference = tiny_model("llama")
    prefix = random_prompt(100)
    prompts = [[*prefix, *random_prompt(length, seed=3)] for length in (4, 30, 7)]
    harness = paged(tiny_model("llama"), num_ahead, num_slots=4, prefill_tokens=64)
    harness.submit("0", prompts[0], Sampling(temperature=0, max_tokens=30))
    harness.run()
    # When others begin as it did
    for index in (1, 2):
        harness.submit(str(index), prompts[index], Sampling(temperature=0, max_tokens=30))
    harness.run()
    # Then
    assert [harness.answer(str(index)) for index in range(3)] == [own_answer(reference, p, 30) for p in prompts]
    again = harness.outcomes["1"]
    assert isinstance(again, Finished)
    assert again.usage.cached_tokens >= 96


@AHEAD
def test_drawn_answers_are_those_of_rows_of_a_grid(num_ahead: int) -> None:
    # Given requests that are drawn in different ways
    wanted = [
        Sampling(temperature=0.8, seed=1, max_tokens=40),
        Sampling(temperature=1.3, seed=2, max_tokens=25),
        Sampling(temperature=0.9, top_p=0.8, seed=3, max_tokens=30),
        Sampling(temperature=0.9, repetition_penalty=1.3, seed=4, max_tokens=30),
        Sampling(temperature=0, max_tokens=50),
    ]
    harnesses = [
        Harness(tiny_model("qwen3"), kv="rows", num_slots=4, prefill_tokens=32),
        paged(tiny_model("qwen3"), num_ahead, num_slots=4, prefill_tokens=32),
    ]
    # When both forms of K/V serve them
    for harness in harnesses:
        for index, sampling in enumerate(wanted):
            harness.submit(str(index), random_prompt(10 + index), sampling)
        harness.run()
    # Then
    rows, pages = ([harness.answer(str(index)) for index in range(len(wanted))] for harness in harnesses)
    assert pages == rows
