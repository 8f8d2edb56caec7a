"""Rows per second of intake: 50,000 rows of 300 bytes, from a file that is stored to chunks that wait for a worker.

First the task that does it, in this process on the embedded servers (fsync on), with the growth of its memory; then
through the whole system, over HTTP, where the null model answers the rows as well.
`python -m benchmarks.intake [--quick] [--json] [--requests N]`; `--quick` is one round of 10,000 rows.
"""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import psutil
from openai import OpenAI
from openai.types import Batch
from redis import Redis

from benchmarks.report import Report, open_report, parse_options
from benchmarks.sandbox import running_servers, settings_in, temporary_root
from benchmarks.workload import lines_of
from cli.client import Server, connect
from cli.follow import ENDED
from cli.local.running import running
from core.job import DEFAULT_TENANT
from core.openai.completion import CHAT_ENDPOINT
from core.redis_url import client_url
from core.settings import Settings
from db import files, jobs
from db.connection import Database
from db.files import new_file_id, open_file_store
from db.jobs import NewBatch
from db.tables import FileRow
from tasks.factory import create_app
from tasks.messages import Messages
from tasks.relay import RedisRelay
from tasks.services import Services
from tasks.upkeep.intake import validate

MODEL = "null"
NUM_ROWS, NUM_QUICK_ROWS = 50_000, 10_000
ROW_BYTES = 300
ROUNDS = 3
WARMUP_ROWS = 2_000
SAMPLE_SECONDS = 0.005
POLL_SECONDS = 0.02


class MemoryWatch:
    """The most memory that this process had while it was watched, above what it had when that began."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._peak = self._before
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory-watch", daemon=True)

    @property
    def growth_megabytes(self) -> float:
        return (self._peak - self._before) / 1e6

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._process.memory_info().rss)


@dataclass(frozen=True, slots=True)
class TaskRun:
    """store_seconds: for the file.  seconds: from the batch to its chunks.  growth_megabytes: of memory meanwhile."""

    store_seconds: float
    seconds: float
    growth_megabytes: float


@dataclass(frozen=True, slots=True)
class SystemRun:
    """intake_seconds, complete_seconds: from the call that makes the batch until it is in progress, and until all of
    its rows are answered and its output file is there."""

    upload_seconds: float
    intake_seconds: float
    complete_seconds: float


def measure_task(settings: Settings, num_rows: int, rounds: int, report: Report) -> None:
    with running_servers(settings) as served, open_services(served) as services:
        _intake(services, lines_of(WARMUP_ROWS, ROW_BYTES, MODEL))
        content = lines_of(num_rows, ROW_BYTES, MODEL)
        measured = [_intake(services, content) for _ in range(rounds)]
    seconds = statistics.median(run.seconds for run in measured)
    report.add("intake_store_seconds", statistics.median(run.store_seconds for run in measured), "s")
    report.add("intake_seconds", seconds, "s")
    report.add("intake_rows_per_second", num_rows / seconds, "rows/s")
    report.add("intake_memory_growth_max", max(run.growth_megabytes for run in measured), "MB")


@contextmanager
def open_services(settings: Settings) -> Iterator[Services]:
    """What an upkeep worker has, without Celery around it."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    database = Database(settings.database_url)
    redis: Redis = Redis.from_url(client_url(settings.redis_url))
    store = open_file_store(settings.file_store, database)
    services = Services(settings, database, store, redis, Messages(create_app(settings)), RedisRelay(redis))
    try:
        yield services
    finally:
        services.close()


def _intake(services: Services, content: bytes) -> TaskRun:
    started = time.perf_counter()
    file_id = _store(services, content)
    stored = time.perf_counter()
    batch = NewBatch(
        endpoint=CHAT_ENDPOINT, input_file_id=file_id, completion_window="24h", expires_after=timedelta(days=1)
    )
    watch = MemoryWatch()
    with watch.watching():
        begun = time.perf_counter()
        with services.database.begin() as session:
            job = jobs.create_batch(session, batch)
        is_accepted = validate(services, job.public_id)
        seconds = time.perf_counter() - begun
    assert is_accepted, "the file was refused"
    return TaskRun(stored - started, seconds, watch.growth_megabytes)


def _store(services: Services, content: bytes) -> str:
    file_id = new_file_id()
    num_bytes = services.files.write(file_id, [content])
    row = FileRow(id=file_id, tenant=DEFAULT_TENANT, purpose="batch", filename="in.jsonl", num_bytes=num_bytes)
    with services.database.begin() as session:
        files.add(session, row)
    return file_id


def measure_system(settings: Settings, num_rows: int, rounds: int, report: Report) -> None:
    with running(settings) as started, connect(Server(started.url)) as client:
        _through_system(client, lines_of(WARMUP_ROWS, ROW_BYTES, MODEL))
        content = lines_of(num_rows, ROW_BYTES, MODEL)
        measured = [_through_system(client, content) for _ in range(rounds)]
    intake_seconds = statistics.median(run.intake_seconds for run in measured)
    complete_seconds = statistics.median(run.complete_seconds for run in measured)
    report.add("system_upload_seconds", statistics.median(run.upload_seconds for run in measured), "s")
    report.add("system_intake_seconds", intake_seconds, "s")
    report.add("system_intake_rows_per_second", num_rows / intake_seconds, "rows/s")
    report.add("system_null_seconds", complete_seconds, "s")
    report.add("system_null_rows_per_second", num_rows / complete_seconds, "rows/s")


def _through_system(client: OpenAI, content: bytes) -> SystemRun:
    started = time.perf_counter()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    uploaded = time.perf_counter()
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while (seen := client.batches.retrieve(batch.id)).status == "validating":
        time.sleep(POLL_SECONDS)
    in_progress = time.perf_counter()
    while (seen := client.batches.retrieve(batch.id)).status not in ENDED:
        time.sleep(10 * POLL_SECONDS)
    _check_all_answered(seen)
    return SystemRun(uploaded - started, in_progress - uploaded, time.perf_counter() - uploaded)


def _check_all_answered(batch: Batch) -> None:
    counts = batch.request_counts
    if batch.status != "completed" or counts is None or counts.completed != counts.total:
        raise RuntimeError(f"expected a batch with every row answered, got one that is {batch.status}: {counts}")


def main() -> None:
    options = parse_options(__doc__)
    num_rows = options.num_requests or (NUM_QUICK_ROWS if options.is_quick else NUM_ROWS)
    rounds = options.num_rounds or (1 if options.is_quick else ROUNDS)
    report = open_report(f"Intake of {num_rows:,} rows of {ROW_BYTES} bytes, median of {rounds}", options)
    for measure in (measure_task, measure_system):
        with temporary_root() as root:
            measure(settings_in(root, f"{MODEL}=null:"), num_rows, rounds, report)


if __name__ == "__main__":
    main()
