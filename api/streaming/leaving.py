"""Whoever waits for something on behalf of a client notices at once when the client leaves."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import create_task_group
from starlette.types import Receive

from core.errors import MillraceError

T = TypeVar("T")


async def unless_left(receive: Receive, action: Callable[[], Awaitable[T]]) -> T | None:
    """What `action` gives; None when the client leaves first, which cancels the action. The body has been read."""
    result: T | None = None
    failure: MillraceError | None = None
    async with create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            result = await action()
        except MillraceError as error:  # a task group would wrap it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
