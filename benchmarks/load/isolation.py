"""People at two requests a second with answers of 16 tokens: alone on the engine, then beside a bulk job that keeps it
full; and what the bulk job makes alone."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from openai import OpenAI

from benchmarks.load.http import Answer, stream_at_rate
from benchmarks.report import Report, percentile
from benchmarks.sandbox import embedded_database_url, settings_in
from benchmarks.system import MODEL, save_model
from benchmarks.workload import batch_file, questions
from cli.client import Server, connect
from cli.local.running import running

PER_SECOND = 2.0
ANSWER_TOKENS = 16
SECONDS, QUICK_SECONDS = 30.0, 6.0
SETTLE_SECONDS = 12.0  # until the engine's slots are full and rows begin to end
NUM_BULK = 2_000
LOOK_SECONDS = 0.2

_TOKENS = "SELECT coalesce(sum(completion_tokens), 0) FROM outcomes"
_STEP = """
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY (total_seconds - first_token_seconds) / (completion_tokens - 1))
FROM outcomes WHERE completion_tokens > 16
"""


def measure_isolation(root: Path, report: Report, *, is_quick: bool) -> None:
    seconds = QUICK_SECONDS if is_quick else SECONDS
    save_model(root / MODEL)
    settings = settings_in(root, f"{MODEL}={root / MODEL}")
    with (
        running(settings) as started,
        connect(Server(started.url)) as client,
        psycopg.connect(embedded_database_url(settings), autocommit=True) as connection,
    ):
        _people(started.url, seconds / 3, seed=1)
        idle = _people(started.url, seconds, seed=2)
        submit_bulk(client)
        await_answers(connection)
        time.sleep(SETTLE_SECONDS)
        alone = tokens_per_second(connection, lambda: time.sleep(seconds))
        beside: list[Answer] = []
        together = tokens_per_second(connection, lambda: beside.extend(_people(started.url, seconds, seed=3)))
        step_seconds = _number(connection, _STEP)
    summarize(report, idle, beside, step_seconds=step_seconds, rates=(alone, together))


def _people(url: str, seconds: float, *, seed: int) -> list[Answer]:
    asked = questions(round(seconds * PER_SECOND), seed)
    bodies: list[dict[str, object]] = [
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        for question in asked
    ]
    return asyncio.run(stream_at_rate(url, bodies, per_second=PER_SECOND))


def submit_bulk(client: OpenAI) -> None:
    """More than can be done meanwhile."""
    file = client.files.create(file=("in.jsonl", batch_file(questions(NUM_BULK), MODEL)), purpose="batch")
    client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def await_answers(connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
    before = _tokens(connection)
    while _tokens(connection) == before:
        time.sleep(LOOK_SECONDS)


def tokens_per_second(connection: "psycopg.Connection[tuple[Any, ...]]", action: Callable[[], object]) -> float:
    """Answer tokens of all rows that ended while the action ran."""
    before, begun = _tokens(connection), time.perf_counter()
    action()
    return (_tokens(connection) - before) / (time.perf_counter() - begun)


def _tokens(connection: "psycopg.Connection[tuple[Any, ...]]") -> int:
    return int(_number(connection, _TOKENS))


def _number(connection: "psycopg.Connection[tuple[Any, ...]]", query: LiteralString) -> float:
    row = connection.execute(query).fetchone()
    assert row is not None
    return float(row[0])


def summarize(
    report: Report, idle: list[Answer], beside: list[Answer], *, step_seconds: float, rates: tuple[float, float]
) -> None:
    alone, together = rates
    ttft = {
        name: percentile([answer.first_seconds for answer in answers], 0.95)
        for name, answers in (("idle", idle), ("beside", beside))
    }
    report.add("isolation_idle_ttft_p95", 1000 * ttft["idle"], "ms")
    report.add("isolation_beside_ttft_p95", 1000 * ttft["beside"], "ms")
    report.add("isolation_step", 1000 * step_seconds, "ms")
    report.add("isolation_ttft_over_bound", ttft["beside"] / (2 * ttft["idle"] + step_seconds), "of 2 x idle + a step")
    report.add("isolation_bulk_alone", alone, "tokens/s")
    report.add("isolation_together", together, "tokens/s")
    report.add("isolation_tokens_kept", together / alone, "of bulk alone")
