"""`millrace queues|pause|resume`: what waits and runs, and holding it."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.client import Server, call

COLUMNS = (
    "queue",
    "model",
    "",
    "waiting",
    "running",
    "rows waiting",
    "rows running",
    "oldest",
    "rows/s",
    "tokens/s",
    "wait",
)
EVERY = {"*": "every model"}
ALL = {"*": "every queue"}


def queues(server: Server, *, as_json: bool) -> None:
    found = call(server, "GET", "/api/v1/queues")["data"]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    for queue in found:
        table.add_row(*_line(queue))
    Console().print(table)


def _line(queue: dict[str, Any]) -> list[str]:
    numbers = ("num_waiting_chunks", "num_running_chunks", "num_waiting_rows", "num_running_rows")
    age = queue["oldest_age_seconds"]
    return [
        queue["service_class"],
        queue["model"],
        "paused" if queue["is_paused"] else "",
        *(f"{queue[name]:,}" for name in numbers),
        _shown(age, " s"),
        _shown(queue["rows_per_second"]),
        _shown(queue["completion_tokens_per_second"]),
        _shown(queue["estimated_wait_seconds"], " s"),
    ]


def _shown(number: float | None, unit: str = "") -> str:
    if number is None:
        return "-"
    return f"{number:,.0f}{unit}" if unit or number >= 10 else f"{number:,.2f}"


def pause(server: Server, model: str | None, queue: str | None) -> None:
    _tell(call(server, "POST", "/api/v1/queues/pause", _which(model, queue)))


def resume(server: Server, model: str | None, queue: str | None) -> None:
    _tell(call(server, "POST", "/api/v1/queues/resume", _which(model, queue)))


def _which(model: str | None, queue: str | None) -> dict[str, object]:
    return {name: value for name, value in (("model", model), ("queue", queue)) if value is not None}


def _tell(answer: dict[str, Any]) -> None:
    """What is held now."""
    for held in answer["data"]:
        model, queue = EVERY.get(held["model"], held["model"]), ALL.get(held["queue"], held["queue"])
        Console().print(f"paused: {model}, {queue}", highlight=False)
    if not answer["data"]:
        Console().print("nothing is paused", highlight=False)
