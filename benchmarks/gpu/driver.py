"""Runs requests through a generator in this process, as the engine does, and says how long they took."""

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.scene import Scene
from benchmarks.gpu.shapes import number_codec
from core.protocol import Finished, Generate, Sampling
from engine.generation.generator import Generator
from engine.models.loading import LoadOptions, build_generator
from engine.runtime import Arrival

_CLIENT = b"benchmark"


@dataclass(frozen=True, slots=True)
class Request:
    prompt: list[int]
    num_answer_tokens: int
    temperature: float = 0.6
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """finished: in the order of the requests."""

    seconds: float
    num_steps: int
    finished: list[Finished]

    @property
    def num_answer_tokens(self) -> int:
        return sum(one.usage.completion_tokens for one in self.finished)

    @property
    def tokens_per_second(self) -> float:
        return self.num_answer_tokens / self.seconds

    @property
    def median_ttft_seconds(self) -> float:
        return statistics.median(one.timing.first_token_seconds for one in self.finished)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a generator is opened with. device, prefill_tokens: instead of the scene's, where given."""

    num_slots: int
    context_tokens: int
    device: str = ""
    prefill_tokens: int = 0


def open_generator(scene: Scene, model: Any, capacity: Capacity) -> Generator:
    options = LoadOptions(
        capacity.device or scene.device,
        num_slots=capacity.num_slots,
        prefill_tokens=capacity.prefill_tokens or scene.prefill_tokens,
        max_context_tokens=capacity.context_tokens,
        kv=scene.kv,
    )
    return build_generator("random", model, number_codec(model.config), options)


def submit(generator: Generator, name: str, request: Request) -> None:
    sampling = Sampling(max_tokens=request.num_answer_tokens, temperature=request.temperature, ignore_eos=True)
    message = Generate(name, "random", sampling, token_ids=request.prompt, prefix_scope=request.scope)
    generator.submit(Arrival(_CLIENT, message, time.monotonic()))


def run(generator: Generator, requests: Sequence[Request]) -> Run:
    """All of them at once. Raises RuntimeError where one of them fails."""
    num_steps = generator.gauges().num_steps_total
    started = time.perf_counter()
    for number, request in enumerate(requests):
        submit(generator, str(number), request)
    finished: dict[str, Finished] = {}
    while generator.wait_seconds() is not None:
        for reply in generator.step():
            match reply.message:
                case Finished() as answer:
                    finished[answer.id] = answer
                case other:
                    raise RuntimeError(f"expected an answer, got {other}")
    seconds = time.perf_counter() - started
    ordered = [finished[str(number)] for number in range(len(requests))]
    return Run(seconds, generator.gauges().num_steps_total - num_steps, ordered)


def run_in_turn(generator: Generator, requests: Sequence[Request]) -> Run:
    """One after the other, so that nobody waits for a place."""
    runs = [run(generator, [request]) for request in requests]
    return Run(sum(one.seconds for one in runs), sum(one.num_steps for one in runs), [one.finished[0] for one in runs])


def warm_up(generator: Generator, vocabulary_size: int) -> None:
    """Every kernel and every batch size once: answers of all lengths end one after the other."""
    chance = random.Random(1)
    num_requests = generator.num_slots
    lengths = [1 + number % 24 for number in range(num_requests)]
    prompts = [[chance.randrange(vocabulary_size) for _ in range(chance.randint(8, 40))] for _ in lengths]
    run(generator, [Request(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)])


def cancel_all(generator: Generator, num_requests: int) -> None:
    for number in range(num_requests):
        generator.cancel((_CLIENT, str(number)))
