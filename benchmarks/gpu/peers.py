"""transformers on the same device, in the same run, on the first requests of the same workload: `generate` on static
batches, and its own continuous batching; and the engine on those requests alone."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.gpu.bandwidth import synchronize
from benchmarks.gpu.driver import Capacity, Request, open_generator, run, warm_up
from benchmarks.gpu.scene import Scene
from benchmarks.gpu.shapes import build
from benchmarks.gpu.workloads import nano_vllm_requests

_STATIC_BATCH = 32
_PAGES_ON_A_CPU = 16  # by itself it would take most of the machine's memory
_RESULT_SECONDS = 1.0

Answer = Callable[[list[Request]], None]


def measure_peers(scene: Scene) -> None:
    """All three on the first 64 requests of nano-vllm's workload; the others sample greedily, which costs them less."""
    config = scene.size.small_shape()
    requests = nano_vllm_requests(scene.size.divisor, config.vocab_size)[: scene.size.num_peer_requests]
    ours = _ours(scene, requests)
    scene.free()
    _report(scene, "transformers_static", ours, requests, _static)
    _report(scene, "transformers_continuous", ours, requests, _continuous)


def _ours(scene: Scene, requests: list[Request]) -> float:
    model = build(scene.size.small_shape(), scene.device, scene.dtype)
    longest = max(len(request.prompt) + request.num_answer_tokens for request in requests)
    generator = open_generator(scene, model, Capacity(len(requests), longest))
    warm_up(generator, model.config.vocab_size)
    speed = run(generator, requests).tokens_per_second
    scene.report.add("engine_beside_peers", speed, "answer tokens/s")
    generator.close()
    return speed


def _report(
    scene: Scene,
    name: str,
    ours: float,
    requests: list[Request],
    open_peer: Callable[[Scene, Any], AbstractContextManager[Answer]],
) -> None:
    """Counted are the tokens that were asked for."""
    model = build(scene.size.small_shape(), scene.device, scene.dtype)
    model.set_attn_implementation("sdpa")
    with open_peer(scene, model) as answer:
        answer([Request(request.prompt, 4) for request in requests[:4]])
        synchronize(scene)
        started = time.perf_counter()
        answer(requests)
        synchronize(scene)
        seconds = time.perf_counter() - started
    speed = sum(request.num_answer_tokens for request in requests) / seconds
    scene.report.add(name, speed, "answer tokens/s")
    scene.report.add(f"ratio_to_{name}", ours / speed, "times faster")
    del model
    scene.free()


@contextmanager
def _static(scene: Scene, model: Any) -> Iterator[Answer]:
    """Every batch runs until its longest answer is done."""

    @torch.inference_mode()
    def answer(requests: list[Request]) -> None:
        for first in range(0, len(requests), _STATIC_BATCH):
            batch = requests[first : first + _STATIC_BATCH]
            width = max(len(request.prompt) for request in batch)
            ids = [[0] * (width - len(request.prompt)) + request.prompt for request in batch]
            mask = [[0] * (width - len(request.prompt)) + [1] * len(request.prompt) for request in batch]
            model.generate(
                torch.tensor(ids, device=scene.device),
                attention_mask=torch.tensor(mask, device=scene.device),
                max_new_tokens=max(request.num_answer_tokens for request in batch),
                do_sample=False,
                pad_token_id=0,
            )

    yield answer


@contextmanager
def _continuous(scene: Scene, model: Any) -> Iterator[Answer]:
    """With its own defaults on a GPU, its graphs made before it is timed."""
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
    small: dict[str, Any] = {"num_blocks": _PAGES_ON_A_CPU, "max_batch_tokens": 256} if scene.device == "cpu" else {}
    manager = model.init_continuous_batching(
        generation_config=greedy, continuous_batching_config=ContinuousBatchingConfig(**small)
    )
    if scene.device == "cuda":
        manager.warmup()
    manager.start()

    def answer(requests: list[Request]) -> None:
        for request in requests:
            manager.add_request(request.prompt, max_new_tokens=request.num_answer_tokens)
        for _ in requests:
            _wait_for_one(manager)

    try:
        yield answer
    finally:
        manager.stop(block=True)
        manager.destroy()


def _wait_for_one(manager: Any) -> None:
    while (result := manager.get_result(timeout=_RESULT_SECONDS)) is None or not result.is_finished():
        if not manager.is_running():
            raise RuntimeError("expected transformers' continuous batching to go on, but its thread has ended")
    if result.error is not None:
        raise RuntimeError(f"expected an answer, got {result.error}")
