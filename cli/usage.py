"""`millrace usage`: what was used, as a table or JSON."""

import json
from urllib.parse import urlencode

from rich.console import Console
from rich.table import Table

from cli.client import Server, call

NUMBERS = ("num_requests", "num_failed", "prompt_tokens", "cached_tokens", "completion_tokens")


def usage(server: Server, group_by: list[str], *, is_for_all: bool, as_json: bool) -> None:
    query = urlencode({"group_by": group_by, "all_tenants": str(is_for_all).lower()}, doseq=True)
    lines = call(server, "GET", f"/api/v1/usage?{query}")["data"]
    if as_json:
        print(json.dumps(lines, indent=2))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (*group_by, "requests", "failed", "prompt", "cached", "answer", "device s", "cost"):
        table.add_column(column, no_wrap=True)
    for line in lines:
        numbers = [f"{line[name]:,}" for name in NUMBERS]
        shown = [str(line[name] or "-") for name in group_by]
        table.add_row(*shown, *numbers, f"{line['device_seconds']:,.1f}", f"{line['cost']:,.4f}")
    Console().print(table)
