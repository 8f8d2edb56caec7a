"""Pages of a list, as OpenAI writes them."""

from collections.abc import Sequence
from typing import Any


def page(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """`found`: objects with an `id`, one more than `limit` where there is another page."""
    data = list(found[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
