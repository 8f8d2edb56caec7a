"""Follows a batch to its end with a live progress bar: rows, answer tokens per second, time left."""

import time
from collections.abc import Callable

from openai import APIConnectionError, InternalServerError, OpenAI
from openai.types import Batch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ENDED = frozenset({"completed", "failed", "cancelled", "expired"})
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 300.0


def make_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("·"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )


def follow(client: OpenAI, batch_id: str, console: Console, sleep: Callable[[float], None] = time.sleep) -> Batch:
    """Returns the batch once it has ended. An interrupt leaves it running on the server, and so does a server that is
    away for more than `PATIENCE_SECONDS`, which raises what it answered last."""
    started = heard_at = time.monotonic()
    with make_progress(console) as progress:
        bar = progress.add_task("validating", total=None, rate="")
        while True:
            try:
                batch = client.batches.retrieve(batch_id)
                heard_at = time.monotonic()
                _show(progress, bar, batch, heard_at - started)
                if batch.status in ENDED:
                    return batch
            except (APIConnectionError, InternalServerError):
                if time.monotonic() - heard_at > PATIENCE_SECONDS:
                    raise
                progress.update(bar, description="server away")
            sleep(POLL_SECONDS)


def _show(progress: Progress, bar: object, batch: Batch, seconds: float) -> None:
    counts = batch.request_counts
    num_done = counts.completed + counts.failed if counts else 0
    num_tokens = batch.usage.output_tokens if batch.usage else 0
    progress.update(
        bar,  # type: ignore[arg-type]
        description=batch.status.replace("_", " "),
        total=counts.total if counts and counts.total else None,
        completed=num_done,
        rate=f"{num_tokens / max(seconds, 1e-9):,.0f} tokens/s",
    )
