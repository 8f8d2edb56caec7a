"""guidellm, unchanged and from an environment of its own, as the people who wait: one stream and sixteen, on an engine
that computes nothing. It shares the cores with what it measures and takes its part of them: its figures, not ours.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.peers.environment import PeerFailed, Requirements, cache_directory, prepare
from benchmarks.report import Report
from benchmarks.sandbox import settings_in
from cli.local.running import running

REQUIREMENTS = Requirements(Path(__file__).with_name("guidellm.txt"))
MODEL = "silent"
STREAMS = (1, 16)
NUM_REQUESTS, NUM_QUICK_REQUESTS = 1_000, 40
LIMIT_SECONDS = 300.0


class Spread(msgspec.Struct):
    mean: float
    percentiles: dict[str, float]


class Successes(msgspec.Struct):
    successful: Spread


class Totals(msgspec.Struct):
    successful: int
    errored: int
    incomplete: int


class Metrics(msgspec.Struct):
    request_totals: Totals
    requests_per_second: Successes
    request_latency: Successes
    time_to_first_token_ms: Successes


class Benchmark(msgspec.Struct):
    metrics: Metrics


class Document(msgspec.Struct):
    """What is read of guidellm's report; there is much more."""

    benchmarks: list[Benchmark]


def measure_guidellm(root: Path, report: Report, *, is_quick: bool) -> None:
    """Raises PeerFailed where it cannot be installed or run, or where a request failed."""
    python = prepare(cache_directory() / "guidellm", REQUIREMENTS)
    num_requests = NUM_QUICK_REQUESTS if is_quick else NUM_REQUESTS
    with running(settings_in(root, f"{MODEL}=null:")) as started:
        for streams in STREAMS:
            document = _run(python.with_name("guidellm"), started.url, root, streams, num_requests)
            for name, value, unit in figures(document, num_requests):
                report.add(f"guidellm_{streams}_in_flight_{name}", value, unit)


def _run(program: Path, url: str, root: Path, streams: int, num_requests: int) -> Document:
    prompts, out = root / "prompts.jsonl", root / f"guidellm-{streams}.json"
    lines = ({"prompt": f"What is mill race {index}?", "output_tokens_count": 1} for index in range(num_requests))
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    command = [
        str(program), "run", "--disable-console",
        "--backend", f"kind=openai_http,target={url},model={MODEL}",
        "--profile", f"kind=concurrent,streams={streams}",
        "--constraint", f"kind=max_requests,count={num_requests}",
        "--data", f"kind=json_file,path={prompts}",
        "--output", f"kind=json,path={out}",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(root / "datasets")}
    try:
        done = subprocess.run(command, env=environment, cwd=root, stdout=sys.stderr, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise PeerFailed(f"expected guidellm to end within {LIMIT_SECONDS:.0f} s, but it did not") from error
    if done.returncode != 0 or not out.exists():
        raise PeerFailed(f"expected guidellm to write a report, but it ended with status {done.returncode}; see above")
    return msgspec.json.decode(out.read_bytes(), type=Document)


def figures(document: Document, num_requests: int) -> list[tuple[str, float, str]]:
    """Name, value and unit. Raises PeerFailed unless all requests succeeded."""
    (benchmark,) = document.benchmarks
    metrics = benchmark.metrics
    totals = metrics.request_totals
    if totals.successful != num_requests or totals.errored or totals.incomplete:
        raise PeerFailed(f"expected {num_requests} requests to succeed, got {totals}")
    latency, ttft = (one.successful.percentiles for one in (metrics.request_latency, metrics.time_to_first_token_ms))
    return [
        ("answers_per_second", metrics.requests_per_second.successful.mean, "answers/s"),
        *((f"latency_{part}", 1000 * latency[part], "ms") for part in ("p50", "p99")),
        *((f"ttft_{part}", ttft[part], "ms") for part in ("p50", "p99")),
    ]
