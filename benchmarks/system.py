"""What the whole system costs: answer tokens per second through `millrace up` (HTTP, PostgreSQL, Celery, default
settings) against the engine alone (the same process, reached over ZMQ, all requests submitted at once).

The same requests for both, in turn, each time with fresh processes; `system_tax` is the median of the system over the
median of the engine alone. A random model of 115 M parameters answers, and ignores the end of text, so that the number
of tokens is known. `python -m benchmarks.system [--quick] [--json] [--requests N]`; the default is three rounds of
more than a minute each on two cores, `--quick` one of seconds.
"""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
from openai import OpenAI

from benchmarks.processes import OTHERS, Reading, cores_used, cpu_seconds, machine_cpu_seconds
from benchmarks.random_model import save_random_model
from benchmarks.report import Report, open_report, parse_options, percentile
from benchmarks.sandbox import gpu_name, running_engine, settings_in, temporary_root
from benchmarks.workload import Question, batch_file, question_body, questions
from cli.client import Server, connect, get_job
from cli.follow import ENDED, POLL_SECONDS
from cli.local.running import running
from core.openai.completion import CHAT_ENDPOINT, parse_body
from core.protocol import BULK_PRIORITY, Finished, Generate
from core.settings import Settings
from workers.engine_client import Answer, EngineClient

MODEL = "random"
NUM_QUESTIONS, NUM_QUICK_QUESTIONS = 440, 64
NUM_WARMUP_QUESTIONS, WARMUP_ANSWER_TOKENS = 40, 8
WARMUP_SEED = 1
ROUNDS = 3
ANSWER_SECONDS = 600.0
BENCHMARK = "benchmark"
LATENCIES = tuple(f"{kind}_seconds_{percent}" for kind in ("ttft", "itl") for percent in ("p50", "p95"))


@dataclass(frozen=True, slots=True)
class Round:
    """engine_seconds: from the first request's arrival at the engine to the last answer.
    latencies: on the engine's clock, from the arrival of each request there.  cores: kept busy, by part.
    """

    prompt_tokens: int
    answer_tokens: int
    seconds: float
    engine_seconds: float
    latencies: dict[str, float]
    cores: dict[str, dict[str, float]]

    @property
    def tokens_per_second(self) -> float:
        return self.answer_tokens / self.seconds

    @property
    def tokens_per_cpu_second(self) -> float:
        """Of all processes of this round, but of nobody else's: what contention with other programs changes little."""
        own = sum(cells["cores"] for part, cells in self.cores.items() if part != OTHERS)
        return self.answer_tokens / (own * self.seconds)


def run_alone(settings: Settings, asked: Sequence[Question]) -> Round:
    with running_engine(settings) as client:
        ask_all(client, generates(warmup_questions()))
        before = _alone_reading()
        answers = ask_all(client, generates(asked))
        after = _alone_reading()
    seconds = after.at_seconds - before.at_seconds
    return Round(
        sum(answer.usage.prompt_tokens for answer in answers),
        sum(answer.usage.completion_tokens for answer in answers),
        seconds,
        seconds,
        latencies_of(answers),
        cores_used(before, after),
    )


def warmup_questions() -> list[Question]:
    """For the first use of every kernel: more than the engine runs at once, with short answers."""
    asked = questions(NUM_WARMUP_QUESTIONS, WARMUP_SEED)
    return [replace(question, answer_tokens=WARMUP_ANSWER_TOKENS) for question in asked]


def generates(asked: Sequence[Question]) -> list[Generate]:
    """What a worker makes of the lines of the batch file."""
    bodies = [msgspec.json.encode(question_body(question, MODEL)) for question in asked]
    return [
        parse_body(CHAT_ENDPOINT, body).to_generate(str(index), priority=BULK_PRIORITY)
        for index, body in enumerate(bodies)
    ]


def ask_all(client: EngineClient, requests: Sequence[Generate]) -> list[Finished]:
    """Raises RuntimeError where one fails."""
    answers: SimpleQueue[Answer] = SimpleQueue()
    client.submit(requests, answers.put)
    return [_finished(answers.get(timeout=ANSWER_SECONDS)) for _ in requests]


def _finished(answer: Answer) -> Finished:
    if isinstance(answer, Finished):
        return answer
    raise RuntimeError(f"expected an answer to every request, got {answer}")


def latencies_of(answers: Sequence[Finished]) -> dict[str, float]:
    """As the database computes them for a job."""
    timings = [(answer.timing, answer.usage.completion_tokens) for answer in answers]
    first = [timing.first_token_seconds for timing, _ in timings]
    between = [(timing.total_seconds - timing.first_token_seconds) / (n - 1) for timing, n in timings if n > 1]
    values = [percentile(numbers, fraction) for numbers in (first, between) for fraction in (0.5, 0.95)]
    return dict(zip(LATENCIES, values, strict=True))


def run_system(settings: Settings, asked: Sequence[Question]) -> Round:
    with running(settings) as started, connect(Server(started.url)) as client:
        run_batch(client, started.url, warmup_questions())
        before = _system_reading(started.pid)
        job = run_batch(client, started.url, asked)
        after = _system_reading(started.pid)
    return Round(
        job["prompt_tokens"],
        job["completion_tokens"],
        after.at_seconds - before.at_seconds,
        job["latencies"]["wall_seconds"],
        {name: job["latencies"][name] for name in LATENCIES},
        cores_used(before, after),
    )


def run_batch(client: OpenAI, url: str, asked: Sequence[Question]) -> dict[str, Any]:
    """Uploads, follows as `millrace batch run` does, returns the job. Raises RuntimeError unless every row succeeds."""
    file = client.files.create(file=("in.jsonl", batch_file(asked, MODEL)), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while (seen := client.batches.retrieve(batch.id)).status not in ENDED:
        time.sleep(POLL_SECONDS)
    counts = seen.request_counts
    if counts is None or counts.completed != len(asked):
        raise RuntimeError(f"expected {len(asked)} answers, got {counts}; the batch is {seen.status}: {seen.errors}")
    return get_job(Server(url), batch.id)


def _alone_reading() -> Reading:
    return Reading(time.perf_counter(), cpu_seconds(os.getpid(), BENCHMARK), machine_cpu_seconds())


def _system_reading(pid: int) -> Reading:
    own = os.times()
    parts = {**cpu_seconds(pid), BENCHMARK: own.user + own.system}
    return Reading(time.perf_counter(), parts, machine_cpu_seconds())


def check_equal_work(rounds: Sequence[Round], asked: Sequence[Question]) -> None:
    """Raises RuntimeError where an engine has read or written another number of tokens than was asked for."""
    expected = (
        sum(question.prompt_tokens for question in asked),
        sum(question.answer_tokens for question in asked),
    )
    for done in rounds:
        if (done.prompt_tokens, done.answer_tokens) != expected:
            got = (done.prompt_tokens, done.answer_tokens)
            raise RuntimeError(f"expected {expected} prompt and answer tokens in every round, got {got}")


def summarize(alone: Sequence[Round], system: Sequence[Round], report: Report) -> None:
    for name, rounds in (("alone", alone), ("system", system)):
        rates = {f"round_{number}": {"rate": done.tokens_per_second} for number, done in enumerate(rounds, 1)}
        report.table(f"{name}_rounds", "tokens/s", rates)
        report.add(f"{name}_tokens_per_second", _median_rate(rounds), "tokens/s")
        report.add(f"{name}_tokens_per_cpu_second", _median_cpu_rate(rounds), "tokens/CPU s")
        report.add(f"{name}_seconds", statistics.median(done.seconds for done in rounds), "s")
        for latency in LATENCIES:
            report.add(f"{name}_{latency}", statistics.median(done.latencies[latency] for done in rounds), "s")
        report.table(f"{name}_cpu", "cores", rounds[-1].cores)
        report.add(f"{name}_others_cpu_max", max(done.cores[OTHERS]["cores"] for done in rounds), "cores")
    outside_seconds = statistics.median(done.seconds - done.engine_seconds for done in system)
    report.add("system_seconds_outside_engine", outside_seconds, "s")
    report.add("system_cpu_tax", _median_cpu_rate(system) / _median_cpu_rate(alone), "system/alone")
    report.add("system_tax", _median_rate(system) / _median_rate(alone), "system/alone")


def _median_rate(rounds: Sequence[Round]) -> float:
    return statistics.median(done.tokens_per_second for done in rounds)


def _median_cpu_rate(rounds: Sequence[Round]) -> float:
    return statistics.median(done.tokens_per_cpu_second for done in rounds)


def _say(name: str, done: Round) -> None:
    others = done.cores[OTHERS]["cores"]
    print(f"{name}: {done.tokens_per_second:.1f} tokens/s, other programs took {others:.2f} cores", file=sys.stderr)


def save_model(directory: Path) -> None:
    """In a process of its own: this one stays small."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(save_random_model, directory).result()


def main() -> None:
    options = parse_options(__doc__)
    asked = questions(options.num_requests or (NUM_QUICK_QUESTIONS if options.is_quick else NUM_QUESTIONS))
    num_rounds = options.num_rounds or (1 if options.is_quick else ROUNDS)
    num_tokens = sum(question.answer_tokens for question in asked)
    title = f"System against engine alone: {len(asked)} requests, {num_tokens:,} answer tokens, median of {num_rounds}"
    report = open_report(title, options, gpu_name())
    alone: list[Round] = []
    system: list[Round] = []
    with temporary_root() as root:
        save_model(root / MODEL)
        settings = settings_in(root, f"{MODEL}={root / MODEL}")
        for _ in range(num_rounds):
            for name, run, rounds in (("alone", run_alone, alone), ("system", run_system, system)):
                rounds.append(run(settings, asked))
                _say(name, rounds[-1])
    check_equal_work([*alone, *system], asked)
    summarize(alone, system, report)


if __name__ == "__main__":
    main()
