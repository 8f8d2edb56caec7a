"""One request in flight, sixteen, and sixty-four streams, on an engine that computes nothing."""

import asyncio
import itertools
import time
from pathlib import Path
from queue import SimpleQueue

from benchmarks.dispatch.line import reading
from benchmarks.load.http import Answer, ask_many, stream_at_once
from benchmarks.processes import cores_used
from benchmarks.report import Report, percentile
from benchmarks.sandbox import running_engine, settings_in, temporary_root
from cli.local.running import Running, running
from core.protocol import ONLINE_PRIORITY, Generate
from workers.engine_client import Answer as EngineAnswer
from workers.engine_client import EngineClient

QUICK, STREAMED = "null", "slow"
STREAM_SECONDS = 1.0
NUM_ALONE, NUM_TOGETHER, NUM_WARMUP = 400, 4_000, 200
CLIENTS, STREAMS = 16, 64
QUICKER = 8


def measure_online(root: Path, report: Report, *, is_quick: bool) -> None:
    share = QUICKER if is_quick else 1
    bare = measure_bare(NUM_ALONE // share)
    settings = settings_in(root, f"{QUICK}=null:,{STREAMED}=null:{STREAM_SECONDS}")
    with running(settings) as started:
        asyncio.run(ask_many(started.url, question(QUICK), num_clients=CLIENTS, num_requests=NUM_WARMUP))
        alone = asyncio.run(ask_many(started.url, question(QUICK), num_clients=1, num_requests=NUM_ALONE // share))
        _report_overhead(report, bare, [answer.total_seconds for answer in alone])
        _measure_together(started, NUM_TOGETHER // share, report)
        asyncio.run(stream_at_once(started.url, question(STREAMED), num_clients=STREAMS))
        streams = asyncio.run(stream_at_once(started.url, question(STREAMED), num_clients=STREAMS))
    _report_streams(report, streams)


def question(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "What is a mill race?"}], "max_tokens": 16}


def measure_bare(num_requests: int) -> list[float]:
    """Seconds of each request with the engine alone, over its own socket, one in flight."""
    with temporary_root() as root, running_engine(settings_in(root, f"{QUICK}=null:")) as client:
        numbers = itertools.count()
        for _ in range(NUM_WARMUP):
            _ask_engine(client, str(next(numbers)))
        return [_ask_engine(client, str(next(numbers))) for _ in range(num_requests)]


def _ask_engine(client: EngineClient, request_id: str) -> float:
    answers: SimpleQueue[EngineAnswer] = SimpleQueue()
    begun = time.perf_counter()
    messages = [{"role": "user", "content": "What is a mill race?"}]
    client.submit([Generate(request_id, QUICK, messages=messages, priority=ONLINE_PRIORITY)], answers.put)
    answers.get(timeout=10)
    return time.perf_counter() - begun


def _report_overhead(report: Report, bare: list[float], system: list[float]) -> None:
    for name, fraction in (("p50", 0.5), ("p99", 0.99)):
        inside, whole = 1000 * percentile(bare, fraction), 1000 * percentile(system, fraction)
        report.add(f"bare_engine_{name}", inside, "ms")
        report.add(f"one_in_flight_{name}", whole, "ms")
        report.add(f"system_overhead_{name}", whole - inside, "ms")


def _measure_together(started: Running, num_requests: int, report: Report) -> None:
    before = reading(started.pid)
    body = question(QUICK)
    answers = asyncio.run(ask_many(started.url, body, num_clients=CLIENTS, num_requests=num_requests))
    after = reading(started.pid)
    report.add("answers_per_second_16_in_flight", num_requests / (after.at_seconds - before.at_seconds), "answers/s")
    for name, fraction in (("p50", 0.5), ("p99", 0.99)):
        report.add(f"16_in_flight_{name}", 1000 * percentile([a.total_seconds for a in answers], fraction), "ms")
    report.table("16_in_flight_cpu", "cores", cores_used(before, after))


def _report_streams(report: Report, streams: list[Answer]) -> None:
    report.add("streams_at_once", len(streams), "streams")
    first = [stream.first_seconds - STREAM_SECONDS / 4 for stream in streams]
    late = [stream.total_seconds - STREAM_SECONDS for stream in streams]
    for name, fraction in (("p50", 0.5), ("p95", 0.95)):
        report.add(f"64_streams_first_delta_late_{name}", 1000 * percentile(first, fraction), "ms")
        report.add(f"64_streams_end_late_{name}", 1000 * percentile(late, fraction), "ms")
