"""A response as server-sent events, while it is made or afterwards, from the beginning or from where a client was.

Relay and database are followed as for any online job; `core.openai.responses.events` says what is told.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from anyio import current_time
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.access.visit import note_failure
from api.context import Context
from api.draining import REASON, outlives_drain
from api.openai.responses.running import beginning, look, response_object
from api.streaming.following import Ended, Grown, Interruption, Told, follow
from api.streaming.growing import Growing
from api.streaming.leaving import unless_left
from api.streaming.response import HEADERS, KEEP_ALIVE, KEEP_ALIVE_SECONDS, unless_away
from core.errors import Interrupted, MillraceError
from core.openai.answer import chat_logprobs
from core.openai.responses.events import Event, EventWriter
from core.openai.responses.items import growing_items
from db.responses import StoredResponse
from tasks.relay import Piece

logger = logging.getLogger(__name__)

INTERRUPTED = "stream_interrupted"


class Teller:
    """From what is told of a job to events."""

    def __init__(self, found: StoredResponse, starting_after: int | None) -> None:
        self._writer = EventWriter(beginning(found.row), starting_after)
        self._id, self._request_id = found.row.id, f"{found.job.public_id}-0"
        self._tells_growth = True
        self._attempt = 0
        self._growing = Growing()

    def begin(self) -> list[Event]:
        return self._writer.begin()

    def grow(self, told: Told) -> list[Event]:
        if isinstance(told, Interruption):
            self._tells_growth = False  # the rest, should it fit, comes with the whole answer
        if not isinstance(told, Grown) or not self._tells_growth:
            return []
        for piece in told.pieces:
            self._add(piece)
        growing = self._growing
        tokens = growing.logprobs[growing.num_written :]
        growing.num_written = len(growing.logprobs)
        items = growing_items(self._id, self._request_id, growing.message)
        return self._writer.grow(items, chat_logprobs(tokens)["content"])

    def _add(self, piece: Piece) -> None:
        """A piece of another attempt, or one that is missing, leaves the rest to the whole answer."""
        if not self._growing.text:
            self._attempt = piece.attempt
        if piece.attempt == self._attempt:
            self._growing.add(piece)
        if piece.attempt != self._attempt or self._growing.is_behind:
            self._tells_growth = False

    def end(self, response: dict[str, Any]) -> list[Event]:
        if response["output"] and not self._writer.continues(response["output"]):
            return self.fail(INTERRUPTED, "the answer began anew after an interruption; send it again")
        return self._writer.end(response)

    def fail(self, code: str, message: str) -> list[Event]:
        return [self._writer.fail(code, message)]


class ResponseStream(Response):
    """left: what to do when the client goes away before the end."""

    def __init__(
        self,
        context: Context,
        found: StoredResponse,
        starting_after: int | None,
        left: Callable[[], Awaitable[None]],
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        super().__init__()
        self._context = context
        self._found = found
        self._teller = Teller(found, starting_after)
        self._left = left
        self._keep_alive_seconds = keep_alive_seconds
        self._has_ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await unless_left(receive, lambda: self._tell_or_refuse(scope, send))
        except OSError:
            logger.debug("response %s: the client closed the connection", self._found.row.id)
        except asyncio.CancelledError:
            if self._has_ended or not outlives_drain(scope):
                raise
            await _write(send, self._teller.fail(Interrupted.code, REASON), is_last=True)
        finally:
            if not self._has_ended:
                await unless_away(self._left)

    async def _tell_or_refuse(self, scope: Scope, send: Send) -> None:
        try:
            await self._tell(scope, send)
        except MillraceError as error:  # PostgreSQL is away, or the response was deleted
            await _write(send, self._teller.fail(error.code, error.message), is_last=True)

    async def _tell(self, scope: Scope, send: Send) -> None:
        await _write(send, self._teller.begin())
        if self._found.outcome is None:  # else there is nothing to wait for
            await self._follow(send)
        row = self._found.row
        ended = await run_in_threadpool(look, self._context, row.tenant, row.id, is_stored=False)
        self._has_ended = True
        note_failure(scope, (ended.outcome and ended.outcome.status_code) or 0)
        await _write(send, self._teller.end(response_object(ended)), is_last=True)

    async def _follow(self, send: Send) -> None:
        written_at = current_time()
        async with aclosing(follow(self._context, self._found.job)) as tellings:
            async for told in tellings:
                if isinstance(told, Ended):
                    return
                events = self._teller.grow(told)
                if events:
                    await _write(send, events)
                elif current_time() - written_at >= self._keep_alive_seconds:
                    await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
                else:
                    continue
                written_at = current_time()


async def _write(send: Send, events: list[Event], *, is_last: bool = False) -> None:
    body = b"".join(map(_encode, events))
    if body or is_last:
        await send({"type": "http.response.body", "body": body, "more_body": not is_last})


def _encode(event: Event) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
