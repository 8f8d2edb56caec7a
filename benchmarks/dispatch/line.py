"""Rows per second through the whole line, from `batches.create` to `completed`, and the time each of its phases takes.

The phases are the stamps that the job itself carries in the database: validated and copied (`intake`), run (`running`),
files written (`finalizing`). Beside them, the cores that each part kept busy meanwhile.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from openai import OpenAI
from openai.types import Batch

from benchmarks.processes import Reading, cores_used, cpu_seconds, machine_cpu_seconds
from benchmarks.report import Report
from benchmarks.workload import lines_of
from cli.client import Server, connect
from cli.follow import ENDED
from cli.local.running import Running

MODEL = "null"
ROW_BYTES = 300
WARMUP_ROWS = 2_000
POLL_SECONDS = 0.1

_PHASES = """
SELECT extract(epoch FROM in_progress_at - created_at), extract(epoch FROM finalizing_at - in_progress_at),
       extract(epoch FROM completed_at - finalizing_at),
       (SELECT extract(epoch FROM min(finished_at)) FROM outcomes WHERE job_id = jobs.id)
           - extract(epoch FROM in_progress_at)
FROM jobs WHERE public_id = %s
"""


@dataclass(frozen=True, slots=True)
class LineRun:
    """seconds: from the call that makes the batch until it is seen `completed`. phases: of the database's clock.
    first_row_seconds: from the commit of the chunks to that of the first answers."""

    num_rows: int
    seconds: float
    phases: dict[str, float]
    first_row_seconds: float
    cores: dict[str, dict[str, float]]

    @property
    def rows_per_second(self) -> float:
        return self.num_rows / self.seconds


def measure_line(started: Running, database_url: str, num_rows: int, rounds: int) -> list[LineRun]:
    with connect(Server(started.url)) as client:
        run_batch(client, lines_of(WARMUP_ROWS, ROW_BYTES, MODEL))
        content = lines_of(num_rows, ROW_BYTES, MODEL)
        return [_run_line(client, started, database_url, content, num_rows) for _ in range(rounds)]


def _run_line(client: OpenAI, started: Running, database_url: str, content: bytes, num_rows: int) -> LineRun:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    before = reading(started.pid)
    begun = time.perf_counter()
    batch = await_batch(client, file.id)
    seconds = time.perf_counter() - begun
    after = reading(started.pid)
    with psycopg.connect(database_url) as connection:
        row = connection.execute(_PHASES, (batch.id,)).fetchone()
    assert row is not None
    intake, running, finalizing, first_row = (float(value) for value in row)
    phases = {"intake": intake, "running": running, "finalizing": finalizing}
    return LineRun(num_rows, seconds, phases, first_row, cores_used(before, after))


def run_batch(client: OpenAI, content: bytes) -> Batch:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return await_batch(client, file.id)


def await_batch(client: OpenAI, file_id: str) -> Batch:
    """Raises RuntimeError unless every row is answered."""
    batch = client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    while (seen := client.batches.retrieve(batch.id)).status not in ENDED:
        time.sleep(POLL_SECONDS)
    counts = seen.request_counts
    if seen.status != "completed" or counts is None or counts.completed != counts.total:
        raise RuntimeError(f"expected a batch with every row answered, got one that is {seen.status}: {counts}")
    return seen


def reading(pid: int) -> Reading:
    return Reading(time.perf_counter(), cpu_seconds(pid), machine_cpu_seconds())


def summarize_line(runs: Sequence[LineRun], report: Report) -> None:
    report.table(
        "dispatch_rounds",
        "rows/s",
        {f"round_{number}": {"rate": run.rows_per_second} for number, run in enumerate(runs, 1)},
    )
    median = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    report.add("rows_per_second", statistics.median(run.rows_per_second for run in runs), "rows/s")
    report.table("dispatch_phases", "s", {name: {"seconds": value} for name, value in median.phases.items()})
    report.add("first_row_seconds", statistics.median(run.first_row_seconds for run in runs), "s")
    report.table("dispatch_cpu", "cores", median.cores)
