"""Answer tokens per second of the engine's generation loop by itself: no process, no wire, no text.

64 requests (prompts of 16 to 195 tokens, answers of 9 to 121, 2,920 answer tokens in all) on the 115 M shape in
bfloat16 with 32 slots; beside it transformers' own `generate` with static batches of 32 on the same requests.
`python -m benchmarks.engine_alone [--quick] [--json] [--threads N] [--profile]`; `--quick` takes a quarter of the
requests and leaves `generate` out.
"""

import argparse
import json
import math
import os
import platform
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_model import VOCABULARY, random_model, save_tokenizer
from core.prompts import PromptCodec
from core.protocol import Finished, Generate, Sampling
from engine.generation.generator import Generator
from engine.models.loading import LoadOptions, build_generator
from engine.runtime import Arrival

_NUM_REQUESTS = 64
_SLOTS = 32
_SEED = 472  # gives 2,920 answer tokens


@dataclass(frozen=True, slots=True)
class Workload:
    prompts: list[list[int]]
    answer_tokens: list[int]


def workload(num_requests: int) -> Workload:
    """Prompt lengths are uniform, answer lengths log-uniform."""
    lengths = random.Random(_SEED)
    prompts = [lengths.randint(16, 199) for _ in range(_NUM_REQUESTS)]
    answers = [round(math.exp(lengths.uniform(math.log(8), math.log(128)))) for _ in range(_NUM_REQUESTS)]
    ids = random.Random(0)
    tokens = [[ids.randrange(VOCABULARY) for _ in range(length)] for length in prompts]
    return Workload(tokens[:num_requests], answers[:num_requests])


def run_engine(generator: Generator, work: Workload) -> float:
    """Answer tokens per second."""
    started = time.perf_counter()
    for number, (prompt, length) in enumerate(zip(work.prompts, work.answer_tokens, strict=True)):
        sampling = Sampling(max_tokens=length, temperature=0, ignore_eos=True)
        request = Generate(str(number), "random", sampling, token_ids=prompt)
        generator.submit(Arrival(b"benchmark", request, time.monotonic()))
    num_tokens = 0
    while generator.wait_seconds() is not None:
        outcomes = [reply.message for reply in generator.step()]
        num_tokens += sum(outcome.usage.completion_tokens for outcome in outcomes if isinstance(outcome, Finished))
    assert num_tokens == sum(work.answer_tokens)
    return num_tokens / (time.perf_counter() - started)


@torch.inference_mode()
def run_transformers(model: Any, work: Workload) -> float:
    """Answer tokens per second that were asked for: a static batch runs until its longest answer is done."""
    started = time.perf_counter()
    for first in range(0, len(work.prompts), _SLOTS):
        prompts = work.prompts[first : first + _SLOTS]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        longest = max(work.answer_tokens[first : first + _SLOTS])
        model.generate(ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, pad_token_id=0)
    return sum(work.answer_tokens) / (time.perf_counter() - started)


def _generator(prefill_tokens: int) -> Generator:
    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(Path(directory))
        codec = PromptCodec.load(Path(directory))
    return build_generator(
        "random", random_model(), codec, LoadOptions("cpu", num_slots=_SLOTS, prefill_tokens=prefill_tokens)
    )


def _report(name: str, value: float, *, as_json: bool) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    if as_json:
        print(json.dumps({"name": name, "value": round(value, 1), "unit": "tokens/s", "machine": machine}))
    else:
        print(f"{name:36} {value:8.1f} answer tokens/s   ({machine})")


def _profile(generator: Generator, work: Workload) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run_engine(generator, work)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the engine's time goes, by operation")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument("--prefill-tokens", type=int, default=512)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    generator = _generator(given.prefill_tokens)
    run_engine(generator, workload(4))  # first use of every kernel
    work = workload(_NUM_REQUESTS // 4 if given.quick else _NUM_REQUESTS)
    if given.profile:
        _profile(generator, work)
        return
    _report("engine_alone", run_engine(generator, work), as_json=given.json)
    if not given.quick:
        _report("transformers_generate_static_32", run_transformers(random_model(), work), as_json=given.json)


if __name__ == "__main__":
    main()
