"""Our engine's generation loop by itself, in this process, for looking into it: no peer, no wire.

`python -m benchmarks.engine_alone [--quick] [--json] [--shape 115m] [--threads N] [--slots N] [--prefill-tokens N]
[--profile]`; the requests are those of `benchmarks.engine`, of which `--quick` takes a quarter; `--profile` prints
where the time goes, by operation, instead of the speed.
"""

import argparse
import time

import torch

from benchmarks.engine import PREFILL_TOKENS, SLOTS
from benchmarks.engine_loop import answer_all, load
from benchmarks.peers.channel import Turn
from benchmarks.random_model import DEFAULT_SHAPE, SHAPES
from benchmarks.report import Options, open_report
from benchmarks.workload import MOST_REQUESTS, requests
from engine.generation.generator import Generator
from engine.models.loading import LoadOptions

NUM_WARMUP_REQUESTS = 8


def workload(num_requests: int) -> Turn:
    return requests(num_requests)


def run_engine(generator: Generator, turn: Turn) -> float:
    """Answer tokens per second."""
    started = time.perf_counter()
    num_tokens = sum(finished.usage.completion_tokens for finished in answer_all(generator, turn))
    assert num_tokens == turn.num_answer_tokens
    return num_tokens / (time.perf_counter() - started)


def profile(generator: Generator, turn: Turn) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run_engine(generator, turn)
    averages = profiler.key_averages()
    return str(averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--shape", choices=tuple(SHAPES), default=DEFAULT_SHAPE)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--prefill-tokens", type=int, default=PREFILL_TOKENS)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    vocabulary = SHAPES[given.shape].vocabulary
    options = LoadOptions("cpu", num_slots=given.slots, prefill_tokens=given.prefill_tokens)
    generator = load(given.shape, options)
    run_engine(generator, requests(NUM_WARMUP_REQUESTS, -1, vocabulary))
    turn = requests(MOST_REQUESTS // 4 if given.quick else MOST_REQUESTS, 0, vocabulary)
    if given.profile:
        print(profile(generator, turn))
        return
    title = f"The engine alone, {given.shape}, {given.slots} slots, {torch.get_num_threads()} threads"
    report = open_report(title, Options(given.quick, given.json))
    report.add("engine_alone_tokens_per_second", run_engine(generator, turn), "tokens/s")


if __name__ == "__main__":
    main()
