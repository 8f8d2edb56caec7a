"""Answers do not change when K/V of known prefixes are taken over: they are those of `generate`, in float32."""

from typing import Any

import pytest

from core.protocol import Finished, Generate, Sampling
from engine.generation.sequence import Sequence
from engine.runtime import Arrival
from tests.engine_harness import CLIENT, Harness, own_answer, random_prompt
from tests.engine_models import CONFIGS, tiny_model

SYSTEM = random_prompt(100, seed=7)
BYTES_PER_TOKEN = {"llama": 3 * 2 * 2 * 12 * 4, "gpt2": 3 * 2 * 4 * 12 * 4}


def greedy(num_tokens: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=num_tokens, ignore_eos=True)


def own(kind: str, prompt: list[int], num_tokens: int) -> list[int]:
    return own_answer(tiny_model(kind, eos_token_id=None), prompt, num_tokens)


def num_hits(harness: Harness) -> int:
    return harness.generator._pool.num_prefix_hit_tokens_total


def submit(harness: Harness, name: str, prompt: list[int], sampling: Sampling, **more: Any) -> list[Sequence]:
    """Its sequences too, whose usage is not told to clients in tokens of blocks."""
    harness.generator.submit(Arrival(CLIENT, Generate(name, "tiny", sampling, token_ids=prompt, **more), 0.0))
    return [choice.sequence for choice in harness.generator._answers._open[CLIENT, name].choices]


@pytest.mark.parametrize("kind", CONFIGS)
def test_prompts_that_begin_alike_and_next_turns_are_answered_as_ever(kind: str) -> None:
    # Given prompts that share their beginning, whole blocks or parts of one, more than there are slots
    prompts = [[*SYSTEM[: 100 - 9 * (index % 3)], *random_prompt(3 + 17 * index, seed=index)] for index in range(7)]
    harness = Harness(tiny_model(kind), num_slots=3, prefill_tokens=32)
    # When they come at different steps, one of them is cancelled, and then each conversation goes on
    for index, prompt in enumerate(prompts):
        submit(harness, str(index), prompt, greedy(40))
        submit(harness, f"cancelled {index}", prompt, greedy(40))
        for _ in range(index % 3):
            harness.step()
        harness.generator.cancel((CLIENT, f"cancelled {index}"))
    harness.run()
    turns = [[*prompt, *harness.answer(str(index)), 5, 6, 7] for index, prompt in enumerate(prompts)]
    before = num_hits(harness)
    for index, turn in enumerate(turns):
        submit(harness, f"turn {index}", turn, greedy(25))
    harness.run()
    # Then all answers are the model's own, and much was taken over
    assert [harness.answer(str(index)) for index in range(7)] == [own(kind, prompt, 40) for prompt in prompts]
    assert [harness.answer(f"turn {index}") for index in range(7)] == [own(kind, turn, 25) for turn in turns]
    assert before >= 6 * 64
    assert num_hits(harness) - before == sum((len(prompt) + 40 - 1) // 32 * 32 for prompt in prompts)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("num_kv_tokens", [640, 900, 1_400])
def test_known_prefixes_give_way_where_memory_is_short_and_answers_stay_right(kind: str, num_kv_tokens: int) -> None:
    # Given little memory, sequences that outgrow it, and beginnings that they share
    harness = Harness(tiny_model(kind), num_slots=4, prefill_tokens=64, kv_bytes=num_kv_tokens * BYTES_PER_TOKEN[kind])
    prompts = [[*SYSTEM, *random_prompt(length, seed=5)] for length in (100, 10, 130, 40, 60, 5)]
    # When they run, and an online request takes a slot now and then
    for index, prompt in enumerate(prompts):
        submit(harness, str(index), prompt, greedy(90))
    for number in range(3):
        for _ in range(25):
            harness.step()
        submit(harness, f"online {number}", [*SYSTEM, number + 3], greedy(5), priority=10)
    harness.run()
    # Then nobody lost anything
    assert harness.generator._scheduler.num_preemptions_total > 0
    for index, prompt in enumerate(prompts):
        assert harness.answer(str(index)) == own(kind, prompt, 90)
    for number in range(3):
        assert harness.answer(f"online {number}") == own(kind, [*SYSTEM, number + 3], 5)


def test_several_answers_to_one_prompt_pay_for_it_once() -> None:
    # Given a prompt of 100 tokens that is to be answered four times
    harness = Harness(tiny_model("llama"), num_slots=4, prefill_tokens=128)
    sequences = submit(harness, "four", SYSTEM, greedy(20), num_answers=4)
    # When it is
    harness.run()
    # Then three of them took over its three whole blocks, and all are right
    assert [sequence.num_reused_tokens for sequence in sequences] == [0, 96, 96, 96]
    outcome = harness.outcomes["four"]
    assert isinstance(outcome, Finished)
    expected = " ".join(map(str, own("llama", SYSTEM, 20)))
    assert [choice.text for choice in outcome.choices] == [expected] * 4


def test_nothing_is_shared_between_scopes_nor_where_reuse_is_off() -> None:
    for is_on, scopes in ((True, ("one", "other")), (False, ("one", "one"))):
        # Given an engine that has answered a prompt
        harness = Harness(tiny_model("llama"), num_slots=2, prefix_reuse=is_on)
        submit(harness, "first", SYSTEM, greedy(5), prefix_scope=scopes[0])
        harness.run()
        # When it comes again
        submit(harness, "second", SYSTEM, greedy(5), prefix_scope=scopes[1])
        harness.run()
        # Then it is computed again
        assert num_hits(harness) == 0
        assert harness.answer("second") == harness.answer("first")
