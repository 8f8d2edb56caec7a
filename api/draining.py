"""The end of the API: what is running gets some seconds to finish, then is ended while somebody still hears it. Who has
not got the beginning of an answer is told to come again; streams end with an error, and their jobs are cancelled.
Streams that can be read on anywhere end at once.
"""

import asyncio
import logging
import threading

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from core.errors import Interrupted

logger = logging.getLogger(__name__)

FINISH_SECONDS = 8.0
RETRY_AFTER_SECONDS = 5
UNAVAILABLE = 503
REASON = "the server is being stopped; send the request again"


class Drain:
    """The requests that are running, and whether their time is over. `begin` may be called in a signal handler."""

    def __init__(self, finish_seconds: float = FINISH_SECONDS) -> None:
        self.is_over = False
        self.running: set[asyncio.Task[object]] = set()
        self._finish_seconds = finish_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_begun = threading.Event()

    @property
    def has_begun(self) -> bool:
        return self._has_begun.is_set()

    def attach(self) -> None:
        """From the event loop that serves."""
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        if self._loop is None or self._has_begun.is_set():
            return
        self._has_begun.set()
        self._loop.call_soon_threadsafe(self._loop.call_later, self._finish_seconds, self._end)

    def _end(self) -> None:
        self.is_over = True
        if self.running:
            logger.warning(
                "%d requests are cut off: the server stops", len(self.running), extra={"event": "api.cut_off"}
            )
        for task in self.running:
            task.cancel("the server stops")


class Draining:
    """ASGI middleware, the outermost one: ends what is still running when the drain is over."""

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        has_begun = False
        scope.setdefault("state", {})["drain"] = self._drain

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        self._drain.running.add(task)
        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if has_begun or not self._drain.is_over:
                raise
            task.uncancel()
            await _come_again(scope, receive, send)
        finally:
            self._drain.running.discard(task)


async def _come_again(scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(UNAVAILABLE, Interrupted.code, REASON)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    await response(scope, receive, send)


def is_draining(scope: Scope) -> bool:
    """Whether the server was asked to end."""
    drain = scope.get("state", {}).get("drain")
    return isinstance(drain, Drain) and drain.has_begun


def outlives_drain(scope: Scope) -> bool:
    """Of a request that was just cancelled: whether that was the end of the drain. If so its task is cancelled no more,
    so that it can write its last words; the server gives it the rest of its time, and ends it then."""
    drain = scope.get("state", {}).get("drain")
    task = asyncio.current_task()
    if task is None or not isinstance(drain, Drain) or not drain.is_over:
        return False
    task.uncancel()
    return True
