"""The answer of a job as server-sent events, as OpenAI sends them: chunks with ids, `data: [DONE]` at the end.

The status waits for the first word, so that whatever goes wrong before is an error with a status of its own; when that
takes long, or in the middle, the error is an event. A client that reads slowly holds up this task alone: the relay is
bounded, and what it has lost by then comes from the whole answer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from anyio import CancelScope, current_time, move_on_after
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.access.visit import note_failure
from api.context import Context
from api.draining import REASON, outlives_drain
from api.errors import SERVER_ERROR, error_response, millrace_error
from api.streaming.following import Ended, Grown, Interruption, Silence, Told, follow
from api.streaming.leaving import unless_left
from api.streaming.narration import Narrator, first_failure
from core.errors import Interrupted, MillraceError, Unavailable
from core.openai.chunks import Event
from db.tables import JobRow, OutcomeRow

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 10.0
DONE_EVENT = b"data: [DONE]\n\n"
# A comment without an empty line: behind ids an empty line would be an event without data to OpenAI's client.
KEEP_ALIVE = b": keep-alive\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather what is meant to be read now
]

End = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ending:
    """What to do when nobody reads any more: `left` when the client went away, `failed` when the rest is of no use."""

    left: End
    failed: End


async def unless_away(end: End) -> None:
    """Ends a job that nobody reads any more. Where PostgreSQL is away the job expires instead."""
    with CancelScope(shield=True):
        try:
            await end()
        except Unavailable as error:
            logger.warning("a job that nobody waits for goes on until it expires: %s", error)


class AnswerStream(Response):
    """told: of the job, from its beginning. timeout_seconds: for all of it."""

    def __init__(
        self,
        context: Context,
        job: JobRow,
        narrator: Narrator,
        ending: Ending,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        super().__init__()
        self._context = context
        self._job = job
        self._narrator = narrator
        self._ending = ending
        self._keep_alive_seconds = keep_alive_seconds
        self._has_started = False
        self._has_ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_left(receive, lambda: self._tell_in_time(scope, receive, send))
        except OSError:
            logger.debug("job %s: the client closed the connection", self._job.public_id)
        except asyncio.CancelledError:
            if not self._has_started or self._has_ended or not outlives_drain(scope):
                raise
            await self._cut_off(scope, receive, send)
        finally:
            if not self._has_ended:
                await unless_away(self._ending.left)

    async def _cut_off(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server stops before the answer has ended."""
        try:
            await self._refuse(millrace_error(Request(scope), Interrupted(REASON)), scope, receive, send)
        finally:
            await unless_away(self._ending.left)

    async def _tell_in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self._context.settings.online_timeout_seconds
        try:
            with move_on_after(seconds) as in_time:
                await self._tell(send)
            if in_time.cancelled_caught:
                raise too_late(seconds)
        except _Failed as failed:
            await self._refuse(failed.response, scope, receive, send)
        except MillraceError as error:
            try:
                await self._refuse(millrace_error(Request(scope), error), scope, receive, send)
            finally:
                await unless_away(self._ending.failed)

    async def _tell(self, send: Send) -> None:
        """Raises _Failed, or Interrupted where the client has text that does not fit to the rest."""
        written_at = current_time()
        async with aclosing(follow(self._context, self._job)) as tellings:
            async for told in tellings:
                events = self._events(told)
                is_last = isinstance(told, Ended)
                if events or is_last:
                    body = b"".join(map(encode_event, events))
                    await self._write(send, body + DONE_EVENT if is_last else body, is_last=is_last)
                elif current_time() - written_at >= self._keep_alive_seconds:
                    await self._write(send, KEEP_ALIVE)
                else:
                    continue
                written_at = current_time()

    def _events(self, told: Told) -> list[Event]:
        match told:
            case Grown():
                return self._narrator.grow(told.pieces)
            case Interruption():
                self._narrator.interrupt(told.attempt)
                return []
            case Silence():
                return []
            case Ended():
                failure = first_failure(told.outcomes)
                if failure is not None:
                    raise _Failed(failed_response(failure))
                return self._narrator.end(told.outcomes, told.attempt)

    async def _write(self, send: Send, body: bytes, *, is_last: bool = False) -> None:
        if not self._has_started:
            self._has_started = True
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        self._has_ended = is_last
        await send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def _refuse(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """As an answer of its own, or as the last event where the stream has begun."""
        self._has_ended = True
        if not self._has_started:
            await response(scope, receive, send)
            return
        note_failure(scope, response.status_code)
        await self._write(send, b"data: " + bytes(response.body) + b"\n\n" + DONE_EVENT, is_last=True)


def too_late(seconds: float) -> Interrupted:
    return Interrupted(
        f"no answer within {seconds:.0f} s; the request was cancelled. Try again, or submit it as a batch"
    )


class _Failed(Exception):
    """The job has ended without an answer; `response` says why."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


def failed_response(outcome: OutcomeRow) -> Response:
    """Of a request that failed, or was stopped before it could run."""
    if outcome.status_code is None:
        return error_response(SERVER_ERROR, "not_executed", "the request was stopped before it could run")
    return Response(outcome.body, status_code=outcome.status_code, media_type="application/json")


def encode_event(event: Event) -> bytes:
    return f"id: {event.id}\ndata: ".encode() + msgspec.json.encode(event.data) + b"\n\n"
