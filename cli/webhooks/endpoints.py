"""The webhook commands: create, list, remove and try endpoints, and see what became of the messages to one."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cli.client import Server, call, connect
from cli.table import print_table
from core.webhooks.events import EventType

COLUMNS = ("id", "name", "url", "events")
DELIVERY_COLUMNS = ("id", "event", "state", "attempts", "status", "error", "next try")
PATH = "/v1/webhook_endpoints"


def create(server: Server, url: str, name: str, events: Sequence[EventType]) -> None:
    """Prints the signing secret, which is shown this once."""
    body: dict[str, object] = {"url": url, "name": name, "event_types": [event.value for event in events]}
    made = call(server, "POST", PATH, body)
    print(f"{made['id']} will hear of {', '.join(made['event_types'])}")
    print(f"signing secret, shown once: {made['signing_secret']}")


def list_endpoints(server: Server) -> None:
    """Newest first."""
    with connect(server) as client:
        found = client.webhooks.list(limit=100)
        print_table(COLUMNS, ([one.id, one.name, one.url, ", ".join(one.event_types)] for one in found))


def remove(server: Server, endpoint_id: str) -> None:
    with connect(server) as client:
        client.webhooks.delete(endpoint_id)
    print(f"{endpoint_id} is removed; what was on its way to it is given up")


def try_out(server: Server, endpoint_id: str, event: EventType) -> None:
    result = call(server, "POST", f"{PATH}/{endpoint_id}/test", {"event_type": event.value})
    print(f"the receiver answered {result['status_code']}")


def list_deliveries(server: Server, endpoint_id: str) -> None:
    """Newest first."""
    found = call(server, "GET", f"{PATH}/{endpoint_id}/deliveries")["data"]
    print_table(DELIVERY_COLUMNS, map(_delivery_row, found), numbers=("attempts",))


def _delivery_row(delivery: dict[str, Any]) -> list[str]:
    next_at = delivery["next_at"]
    return [
        delivery["id"],
        delivery["event_type"],
        delivery["state"],
        str(delivery["num_attempts"]),
        str(delivery["last_status"] or "-"),
        delivery["last_error"] or "-",
        datetime.fromtimestamp(next_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if next_at else "-",
    ]
