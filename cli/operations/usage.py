"""`millrace usage`: what was used, as a table or JSON."""

import json
from typing import Any
from urllib.parse import urlencode

from cli.client import Server, call
from cli.table import print_table

NUMBERS = ("num_requests", "num_failed", "prompt_tokens", "cached_tokens", "completion_tokens")


def usage(server: Server, group_by: list[str], *, is_for_all: bool, as_json: bool) -> None:
    query = urlencode({"group_by": group_by, "all_tenants": str(is_for_all).lower()}, doseq=True)
    lines = call(server, "GET", f"/api/v1/usage?{query}")["data"]
    if as_json:
        print(json.dumps(lines, indent=2))
        return
    columns = (*group_by, "requests", "failed", "prompt", "cached", "answer", "device s", "cost")
    print_table(columns, (_row(line, group_by) for line in lines), numbers=columns[len(group_by) :])


def _row(line: dict[str, Any], group_by: list[str]) -> list[str]:
    numbers = [f"{line[name]:,}" for name in NUMBERS]
    shown = [str(line[name] or "-") for name in group_by]
    return [*shown, *numbers, f"{line['device_seconds']:,.1f}", f"{line['cost']:,.4f}"]
