"""What a kill costs: a 10,000-row job runs while the batch worker and the engine are killed in turn, and every arrival
of a row at an engine is counted. What arrived twice was run again."""

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI

from benchmarks.dispatch.line import MODEL, ROW_BYTES
from benchmarks.processes import parts_of
from benchmarks.report import Report
from benchmarks.sandbox import settings_in
from benchmarks.workload import lines_of
from cli.client import Server, connect
from cli.follow import ENDED
from cli.local.running import running

NUM_ROWS = 10_000
DELAY_SECONDS = 0.5
VICTIMS = ("batch-cpu", "engine-cpu")
FIRST_FRACTION, LAST_FRACTION = 0.05, 0.8
LOOK_SECONDS = 0.05
JOURNAL = "arrivals"


@dataclass(frozen=True, slots=True)
class Costs:
    """again: arrivals that were not the first of their row."""

    num_rows: int
    num_kills: int
    again: int

    @property
    def fraction_per_kill(self) -> float:
        return self.again / self.num_rows / self.num_kills


def measure_kills(root: Path, report: Report, *, num_kills: int) -> None:
    journal = root / JOURNAL
    settings = settings_in(root, f"{MODEL}=null:{DELAY_SECONDS}>{journal}")
    with running(settings) as started, connect(Server(started.url)) as client:
        file = client.files.create(file=("in.jsonl", lines_of(NUM_ROWS, ROW_BYTES, MODEL)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        for number in range(num_kills):
            share = FIRST_FRACTION + (LAST_FRACTION - FIRST_FRACTION) * number / num_kills
            await_answers(client, batch.id, round(share * NUM_ROWS))
            os.kill(parts_of(started.pid)[VICTIMS[number % len(VICTIMS)]][0].pid, signal.SIGKILL)
        await_answers(client, batch.id, NUM_ROWS)
    costs = count(journal.read_text().split(), num_kills)
    report.add("rows_run_again_per_kill", costs.again / costs.num_kills, "rows")
    report.add("rows_run_again_fraction_per_kill", costs.fraction_per_kill, f"of {NUM_ROWS:,} rows")


def await_answers(client: OpenAI, batch_id: str, number: int) -> None:
    """Raises RuntimeError where the batch ends with fewer."""
    while True:
        seen = client.batches.retrieve(batch_id)
        done = seen.request_counts.completed if seen.request_counts else 0
        if done >= number:
            return
        if seen.status in ENDED:
            raise RuntimeError(f"expected {number} answers, got {done}; the batch is {seen.status}")
        time.sleep(LOOK_SECONDS)


def count(arrivals: list[str], num_kills: int) -> Costs:
    """arrivals: the digest of a prompt for each."""
    seen = Counter(arrivals)
    return Costs(num_rows=len(seen), num_kills=num_kills, again=seen.total() - len(seen))
