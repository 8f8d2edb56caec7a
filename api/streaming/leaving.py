"""Whoever waits for something on behalf of a client notices at once when the client leaves. A bare task of
asyncio watches: a task group, made and ended for each request, costs as much as the route around it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import CancelScope
from starlette.types import Receive

T = TypeVar("T")


async def unless_left(receive: Receive, action: Callable[[], Awaitable[T]]) -> T | None:
    """What `action` gives; None when the client leaves first, which cancels the action. The body has been read."""
    with CancelScope() as until_left:
        watcher = asyncio.ensure_future(_watch(receive, until_left))
        try:
            return await action()
        finally:
            watcher.cancel()
    return None


async def _watch(receive: Receive, until_left: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    until_left.cancel()
