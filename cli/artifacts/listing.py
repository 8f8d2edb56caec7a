"""Shows and removes the models that quantization jobs made, over HTTP."""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

from rich.filesize import decimal

from cli.client import Server, call
from cli.table import print_table

PATH = "/api/v1/artifacts"
COLUMNS = ("id", "name", "model", "node", "size", "served as", "directory")
PAGE = 100


def list_artifacts(server: Server, *, as_json: bool) -> None:
    """Newest first, with what they take on disk together."""
    found = list(_all(server))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print_table(COLUMNS, map(_row, found), numbers=("size",))
    print(f"{len(found)} in all, {decimal(sum(one['num_bytes'] for one in found))} on disk")


def _row(one: dict[str, Any]) -> list[str]:
    names = (one[name] for name in ("id", "name", "model", "node"))
    return [*names, decimal(one["num_bytes"]), ", ".join(one["served_as"]) or "-", one["directory"]]


def _all(server: Server) -> Iterator[dict[str, Any]]:
    query: dict[str, object] = {"limit": PAGE}
    while True:
        page = call(server, "GET", f"{PATH}?{urlencode(query)}")
        yield from page["data"]
        if not page["has_more"]:
            return
        query["after"] = page["last_id"]


def remove(server: Server, artifact_ids: Sequence[str]) -> None:
    """One behind the other; the first that cannot be removed ends it."""
    for artifact_id in artifact_ids:
        call(server, "DELETE", f"{PATH}/{artifact_id}")
        print(f"{artifact_id} is removed; its node takes the directory away")
