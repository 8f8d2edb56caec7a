"""Answer tokens per second of whole workloads, and how near that is to what the memory bandwidth allows.

`nano-vllm`'s published workload is drawn in the order of its own `bench.py`, so that it is the same to the token.
"""

import random
from dataclasses import dataclass

from benchmarks.gpu.bandwidth import bandwidth
from benchmarks.gpu.driver import Capacity, Request, Run, open_generator, run, warm_up
from benchmarks.gpu.scene import Scene
from benchmarks.gpu.shapes import Traffic, build, traffic

NANO_VLLM_REQUESTS = 256
NANO_VLLM_ANSWER_TOKENS = 133_966
_NANO_VLLM_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Bound:
    """What a model must read, and how fast its device does that at best."""

    needed: Traffic
    bytes_per_second: float


def nano_vllm_requests(divisor: int = 1, vocabulary_size: int = 10_001) -> list[Request]:
    """256 prompts of 100 to 1,024 tokens, answers as long, seed 0. divisor: for a smaller one of the same kind."""
    chance = random.Random(0)
    prompts = [[chance.randint(0, 10_000) for _ in range(chance.randint(100, 1024))] for _ in range(NANO_VLLM_REQUESTS)]
    lengths = [chance.randint(100, 1024) for _ in prompts]
    shorter = [[token % vocabulary_size for token in prompt[: len(prompt) // divisor]] for prompt in prompts]
    requests = [Request(prompt, length // divisor) for prompt, length in zip(shorter, lengths, strict=True)]
    return requests[: NANO_VLLM_REQUESTS // divisor]


def measure_nano_vllm(scene: Scene) -> None:
    """256 requests at once, a model of Qwen3-0.6B's shape."""
    bytes_per_second = bandwidth(scene)
    model = build(scene.size.small_shape(), scene.device, scene.dtype)
    requests = nano_vllm_requests(scene.size.divisor, model.config.vocab_size)
    generator = open_generator(scene, model, Capacity(len(requests), _NANO_VLLM_CONTEXT // scene.size.divisor))
    warm_up(generator, model.config.vocab_size)
    bound = Bound(traffic(model), bytes_per_second)
    _report(scene, "nano_vllm", requests, run(generator, requests), bound)
    generator.close()


def measure_llama_8b(scene: Scene) -> None:
    """300 requests of 1,000 prompt and 1,000 answer tokens at once, a model of Llama-3.1-8B's shape."""
    bytes_per_second = bandwidth(scene)
    model = build(scene.size.large_shape(), scene.device, scene.dtype)
    vocabulary, divisor = model.config.vocab_size, scene.size.divisor
    chance = random.Random(0)
    length = 1000 // divisor
    prompts = [[chance.randrange(vocabulary) for _ in range(length)] for _ in range(300 // divisor)]
    requests = [Request(prompt, length) for prompt in prompts]
    generator = open_generator(scene, model, Capacity(len(requests), 2 * length + 48))
    warm_up(generator, vocabulary)
    bound = Bound(traffic(model), bytes_per_second)
    _report(scene, "llama_8b", requests, run(generator, requests), bound)
    generator.close()


def _report(scene: Scene, name: str, requests: list[Request], result: Run, bound: Bound) -> None:
    expected = sum(request.num_answer_tokens for request in requests)
    if result.num_answer_tokens != expected:
        raise RuntimeError(f"expected {expected} answer tokens, got {result.num_answer_tokens}")
    num_live = sum(_live_tokens(len(request.prompt), request.num_answer_tokens) for request in requests)
    num_bytes = result.num_steps * bound.needed.weight_bytes + num_live * bound.needed.kv_bytes_per_token
    scene.report.add(f"{name}_tokens_per_second", result.tokens_per_second, "answer tokens/s")
    scene.report.add(f"{name}_answer_tokens", result.num_answer_tokens, "tokens")
    scene.report.add(f"{name}_seconds", result.seconds, "s")
    scene.report.add(f"{name}_ms_per_step", 1000 * result.seconds / result.num_steps, "ms")
    scene.report.add(f"{name}_share_of_bandwidth", num_bytes / bound.bytes_per_second / result.seconds, "of the bound")


def _live_tokens(num_prompt_tokens: int, num_answer_tokens: int) -> int:
    """Tokens whose K/V its decode steps read, all steps together."""
    num_steps = num_answer_tokens - 1
    return num_steps * num_prompt_tokens + num_steps * (num_steps + 1) // 2
