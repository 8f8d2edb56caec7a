"""`millrace batch run|ls|show|cancel|results`: the Batch API from the shell."""

import json
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from openai import APIConnectionError, InternalServerError, OpenAI
from openai.types import Batch
from rich.console import Console
from rich.table import Table

from cli.client import Server, connect, download, get_job
from cli.follow import follow
from cli.table import print_table
from core.errors import InvalidRequest, MillraceError
from core.openai.completion import CHAT_ENDPOINT

MAX_SHOWN_ERRORS = 10
COLUMNS = ("id", "state", "model", "done", "failed", "rows", "created")


class BatchNotCompleted(MillraceError):
    code = "batch_not_completed"


def run(server: Server, source: Path, out: Path, model: str | None, window: str) -> None:
    """Submits a file, follows it, writes the answers. Raises BatchNotCompleted when the file is refused."""
    console = Console()
    with connect(server) as client:
        batch = submit(client, source, model, window)
        console.print(f"batch {batch.id}", highlight=False)
        batch = _follow_or_leave(client, batch.id, console)
        _check_accepted(batch)
        _save(client, batch, out, console)
        console.print(summary_table(batch, get_job(server, batch.id)))
        _check_completed(batch)


def submit(client: OpenAI, source: Path, model: str | None, window: str = "24h") -> Batch:
    """Uploads a file, with another model in every row if one is given. Raises InvalidRequest when it cannot be read."""
    endpoint = _endpoint(source)
    with _rewritten(source, model) as path, path.open("rb") as content:
        file = client.files.create(file=(source.name, content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window=window,  # type: ignore[arg-type]
    )


def _endpoint(source: Path) -> str:
    """The url of the first line; the server checks that the others have the same."""
    try:
        with source.open("rb") as file:
            first = file.readline()
    except OSError as error:
        raise InvalidRequest(f"cannot read {source}: {error.strerror}") from error
    try:
        return str(json.loads(first)["url"])
    except (ValueError, KeyError, TypeError):
        return CHAT_ENDPOINT  # the server says what is wrong with the line


@contextmanager
def _rewritten(source: Path, model: str | None) -> Any:
    if model is None:
        yield source
        return
    with tempfile.NamedTemporaryFile("wb", suffix=".jsonl") as target:
        with source.open("rb") as lines:
            for line in lines:
                target.write(_with_model(line, model))
        target.flush()
        yield Path(target.name)


def _with_model(line: bytes, model: str) -> bytes:
    """A line that is no request object stays as it is: the server names it."""
    try:
        row = json.loads(line)
        row["body"]["model"] = model
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except (ValueError, KeyError, TypeError, RecursionError):
        return line


def _follow_or_leave(client: OpenAI, batch_id: str, console: Console) -> Batch:
    try:
        return follow(client, batch_id, console)
    except (KeyboardInterrupt, APIConnectionError, InternalServerError) as error:
        console.print(f"The batch goes on. `millrace batch show {batch_id}` follows it, `… cancel` ends it.")
        if not isinstance(error, KeyboardInterrupt):
            raise
        raise typer.Exit(130) from None


def _check_completed(batch: Batch) -> None:
    num_completed = batch.request_counts.completed if batch.request_counts else 0
    if batch.status != "completed" or not num_completed:
        raise BatchNotCompleted(f"expected a completed batch with answers; it is {batch.status} with {num_completed}")


def _check_accepted(batch: Batch) -> None:
    if batch.status == "failed":
        raise BatchNotCompleted("the file was refused:\n" + "\n".join(_error_lines(batch)))


def _error_lines(batch: Batch) -> Iterable[str]:
    errors = (batch.errors.data if batch.errors else None) or []
    for error in errors[:MAX_SHOWN_ERRORS]:
        yield f"  line {error.line or '-'}: {error.message}"
    if len(errors) > MAX_SHOWN_ERRORS:
        yield f"  … and {len(errors) - MAX_SHOWN_ERRORS} more"


def _save(client: OpenAI, batch: Batch, out: Path, console: Console) -> None:
    num_answers = download(client, batch.output_file_id, out)
    console.print(f"{num_answers:,} answers in {out}", highlight=False)
    if batch.error_file_id is not None:
        beside = out.with_suffix(".errors.jsonl")
        num_failures = download(client, batch.error_file_id, beside)
        console.print(f"{num_failures:,} failures in {beside}", highlight=False)


def summary_table(batch: Batch, job: dict[str, Any]) -> Table:
    """What a batch did, how fast; latencies are the engine's."""
    latencies: dict[str, float] = job["latencies"]
    wall_seconds = latencies.get("wall_seconds", 0.0)
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("state", batch.status)
    table.add_row("rows done / failed", f"{job['num_completed']:,} / {job['num_failed']:,}")
    table.add_row("answer tokens", f"{job['completion_tokens']:,}")
    if wall_seconds:
        table.add_row("answer tokens/s", f"{job['completion_tokens'] / wall_seconds:,.0f}")
    for name, label in (("ttft", "time to first token"), ("itl", "between tokens")):
        if f"{name}_seconds_p50" in latencies:
            p50, p95 = latencies[f"{name}_seconds_p50"], latencies[f"{name}_seconds_p95"]
            table.add_row(f"{label}, p50 / p95", f"{p50 * 1000:,.1f} / {p95 * 1000:,.1f} ms")
    return table


def list_batches(server: Server, limit: int) -> None:
    """Newest first."""
    with connect(server) as client:
        print_table(COLUMNS, map(_list_row, client.batches.list(limit=limit).data), numbers=COLUMNS[3:6])


def _list_row(batch: Batch) -> list[str]:
    counts = batch.request_counts
    numbers = (counts.completed, counts.failed, counts.total) if counts else (0, 0, 0)
    created = datetime.fromtimestamp(batch.created_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return [batch.id, batch.status, batch.model or "-", *(f"{number:,}" for number in numbers), created]


def show(server: Server, batch_id: str) -> None:
    """Follows the batch while it runs."""
    console = Console()
    with connect(server) as client:
        batch = _follow_or_leave(client, batch_id, console)
        for line in _error_lines(batch):
            console.print(line, highlight=False, markup=False)
        console.print(summary_table(batch, get_job(server, batch_id)))


def cancel(server: Server, batch_id: str) -> None:
    with connect(server) as client:
        batch = client.batches.cancel(batch_id)
    Console().print(f"{batch.id} is {batch.status}", highlight=False)


def results(server: Server, batch_id: str, out: Path) -> None:
    """Raises BatchNotCompleted while there are none."""
    with connect(server) as client:
        batch = client.batches.retrieve(batch_id)
        if batch.output_file_id is None and batch.error_file_id is None:
            raise BatchNotCompleted(f"expected a batch with results, got one that is {batch.status}")
        _save(client, batch, out, Console())
