"""Steps alone: decoding per batch size beside what the memory bandwidth allows, and prompts."""

import random
import time
from typing import Any

from benchmarks.gpu.bandwidth import bandwidth
from benchmarks.gpu.driver import Capacity, Request, cancel_all, open_generator, run, submit, warm_up
from benchmarks.gpu.scene import Scene
from benchmarks.gpu.shapes import Traffic, build, traffic
from engine.generation.generator import Generator

_PROMPT_TOKENS = 512
_NUM_PROMPTS = 64


def measure_steps(scene: Scene) -> None:
    """Decode steps per batch size over prompts of 512 tokens; then 64 prompts of 1,024 tokens."""
    bandwidth(scene)
    model = build(scene.size.small_shape(), scene.device, scene.dtype)
    num_prompt_tokens = _PROMPT_TOKENS // scene.size.divisor
    capacity = Capacity(max(scene.size.batch_sizes), 4 * num_prompt_tokens + 2 * scene.size.num_steps)
    generator = open_generator(scene, model, capacity)
    warm_up(generator, model.config.vocab_size)
    for batch_size in scene.size.batch_sizes:
        _measure_batch(scene, generator, traffic(model), _prompts(model, batch_size, num_prompt_tokens))
    prompts = _prompts(model, _NUM_PROMPTS // scene.size.divisor, 2 * num_prompt_tokens, seed=1)
    result = run(generator, [Request(prompt, 1) for prompt in prompts])
    num_tokens = sum(map(len, prompts))
    scene.report.add("prefill_tokens_per_second", num_tokens / result.seconds, "prompt tokens/s")
    generator.close()


def _prompts(model: Any, num_prompts: int, length: int, seed: int = 0) -> list[list[int]]:
    chance = random.Random(f"{seed} {num_prompts}")
    return [[chance.randrange(model.config.vocab_size) for _ in range(length)] for _ in range(num_prompts)]


def _measure_batch(scene: Scene, generator: Generator, needed: Traffic, prompts: list[list[int]]) -> None:
    num_steps, batch_size = scene.size.num_steps, len(prompts)
    for number, prompt in enumerate(prompts):
        submit(generator, str(number), Request(prompt, 2 * num_steps + len(prompt)))
    _step_until_all_decode(generator, batch_size)
    started = time.perf_counter()
    for _ in range(num_steps):
        generator.step()
    seconds = (time.perf_counter() - started) / num_steps
    num_live = batch_size * (len(prompts[0]) + num_steps / 2)
    bound = needed.step_bytes(num_live) / bandwidth(scene)
    cancel_all(generator, batch_size)
    scene.report.add(f"decode_ms_per_step.{batch_size}", 1000 * seconds, "ms")
    scene.report.add(f"decode_tokens_per_second.{batch_size}", batch_size / seconds, "answer tokens/s")
    scene.report.add(f"decode_share_of_bandwidth.{batch_size}", bound / seconds, "of the bound")


def _step_until_all_decode(generator: Generator, batch_size: int) -> None:
    num_tokens, num_new = generator.gauges().completion_tokens_total, 0
    while num_new != batch_size:
        generator.step()
        total = generator.gauges().completion_tokens_total
        num_tokens, num_new = total, total - num_tokens
