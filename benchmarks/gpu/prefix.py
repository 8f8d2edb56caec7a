"""Time to the first token of prompts that begin alike, with that beginning computed each time and reused."""

import random
from collections.abc import Callable

from benchmarks.gpu.driver import Capacity, Request, Run, open_generator, run, run_in_turn
from benchmarks.gpu.scene import Scene
from benchmarks.gpu.shapes import build

_SHARED_TOKENS, _OWN_TOKENS, _ANSWER_TOKENS = 2048, 32, 32
_NUM_REQUESTS = 16


def measure_prefix(scene: Scene) -> None:
    """16 prompts that share 2,048 tokens and differ in 32, one after the other: each in a scope of its own, where
    nothing is shared, and then all in one."""
    model = build(scene.size.small_shape(), scene.device, scene.dtype)
    chance = random.Random(0)
    num_shared = _SHARED_TOKENS // scene.size.divisor
    shared = [chance.randrange(model.config.vocab_size) for _ in range(num_shared)]
    prompts = [
        [*shared, *(chance.randrange(model.config.vocab_size) for _ in range(_OWN_TOKENS))]
        for _ in range(max(2, _NUM_REQUESTS // scene.size.divisor))
    ]
    context_tokens = num_shared + _OWN_TOKENS + _ANSWER_TOKENS
    generator = open_generator(scene, model, Capacity(4, context_tokens, prefill_tokens=context_tokens))
    run_in_turn(generator, _requests(prompts, lambda number: f"warm-up {number}"))
    computed = run_in_turn(generator, _requests(prompts, lambda number: f"scope {number}"))
    run(generator, _requests(prompts[:1], lambda _: "one scope"))
    reused = run_in_turn(generator, _requests(prompts, lambda _: "one scope"))
    _report(scene, computed, reused)
    generator.close()


def _requests(prompts: list[list[int]], scope: Callable[[int], str]) -> list[Request]:
    return [
        Request(prompt, _ANSWER_TOKENS, temperature=0, scope=scope(number)) for number, prompt in enumerate(prompts)
    ]


def _report(scene: Scene, computed: Run, reused: Run) -> None:
    num_equal = sum(one.text == other.text for one, other in zip(computed.finished, reused.finished, strict=True))
    num_spared = sum(one.usage.cached_tokens for one in reused.finished) / len(reused.finished)
    scene.report.add("prefix_ttft_computed", 1000 * computed.median_ttft_seconds, "ms")
    scene.report.add("prefix_ttft_reused", 1000 * reused.median_ttft_seconds, "ms")
    scene.report.add("prefix_ttft_ratio", computed.median_ttft_seconds / reused.median_ttft_seconds, "times faster")
    scene.report.add("prefix_reused_tokens", num_spared, "tokens a prompt")
    scene.report.add("prefix_equal_answers", num_equal / len(reused.finished), "of the answers")
