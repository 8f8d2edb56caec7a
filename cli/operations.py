"""`millrace queues|pause|resume`: what waits and runs, and holding it."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.client import Server, call

COLUMNS = ("queue", "model", "", "waiting", "running", "rows waiting", "rows running", "oldest")
EVERY = {"*": "every model"}
BOTH = {"*": "both queues"}


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
        "-" if age is None else f"{age:,.0f} s",
    ]


def pause(server: Server, model: str | None, queue: str | None) -> None:
    _tell(call(server, "POST", "/api/v1/queues/pause", _which(model, queue)))


def resume(server: Server, model: str | None, queue: str | None) -> None:
    _tell(call(server, "POST", "/api/v1/queues/resume", _which(model, queue)))


def _which(model: str | None, queue: str | None) -> dict[str, object]:
    return {name: value for name, value in (("model", model), ("queue", queue)) if value is not None}


def _tell(answer: dict[str, Any]) -> None:
    """What is held now."""
    for held in answer["data"]:
        model, queue = EVERY.get(held["model"], held["model"]), BOTH.get(held["queue"], held["queue"])
        Console().print(f"paused: {model}, {queue}", highlight=False)
    if not answer["data"]:
        Console().print("nothing is paused", highlight=False)
