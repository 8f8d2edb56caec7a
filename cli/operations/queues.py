"""`millrace queues|pause|resume`: what waits and runs, and holding it."""

import json
from typing import Any

from rich.console import Console

from cli.client import Server, call
from cli.table import print_table

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
    print_table(COLUMNS, map(_line, found), numbers=COLUMNS[3:])


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
    for line in told(answer):
        Console(soft_wrap=True).print(line, highlight=False)


def told(answer: dict[str, Any]) -> list[str]:
    """What is held now, and what had begun before and goes on."""
    lines = [
        f"paused: {EVERY.get(one['model'], one['model'])}, {ALL.get(one['queue'], one['queue'])}"
        for one in answer["data"]
    ]
    return [*(lines or ["nothing is paused"]), *map(_running, answer["still_running"])]


def _running(one: dict[str, Any]) -> str:
    num_rows, num_jobs, jobs = one["num_rows"], one["num_jobs"], ", ".join(one["jobs"])
    place = f"still running: {one['model']}, {one['queue']}:"
    if num_jobs > len(one["jobs"]):
        jobs += ", …"
    match one["queue"]:
        case "heavy":
            return f"{place} {_number(num_jobs, 'job')} to the end ({jobs}); DELETE /api/v1/jobs/ID ends one at once"
        case "online":
            return f"{place} {_number(num_rows, 'request')}, answered to the end"
    return f"{place} chunks with {_number(num_rows, 'row')} ({jobs}); what the engine has is finished, the rest waits"


def _number(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
