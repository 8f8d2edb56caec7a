"""`/api/v1/jobs/{id}/events`: state changes and progress of a job as server-sent events.

There is no log of events: a job row says when it came into each state, so the events of its past can be told at any
time. An event's id is how many changes of state were told, and the progress that was told last; so whoever comes back
with `Last-Event-ID` hears what is new since then, from any API process.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.access.scopes import READ
from api.context import Context, Ctx, Tenant
from api.draining import is_draining
from api.native.objects import Job, described
from core.errors import NotFound, Overloaded, Unavailable
from core.job import TERMINAL_JOB_STATES, JobState
from db import jobs
from db.tables import JobRow

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

LOOK_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 15.0
STREAM_SECONDS = 3600.0  # then the client comes back with Last-Event-ID
MOST_STREAMS = 256  # of an API process; each looks into the database twice a second
MOST_STREAMS_OF_A_TENANT = 64
EVENT_STREAM = "text/event-stream"

LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="Tells only what is new since then.")]

_streams: Counter[str] = Counter()  # tenant -> how many


@dataclass(frozen=True, slots=True)
class Mark:
    """What was told: so many changes of state, and this progress."""

    num_states: int = 0
    progress: str = ""

    @classmethod
    def parse(cls, text: str | None) -> "Mark":
        """From the id of an event; anything else is the beginning."""
        number, _, progress = (text or "").partition("-")
        return cls(int(number), progress) if number.isascii() and number.isdigit() else cls()

    def __str__(self) -> str:
        return f"{self.num_states}-{self.progress}"


@router.get(
    "/{job_id}/events",
    summary="Follow a job: its changes of state and its progress, as server-sent events",
    response_class=StreamingResponse,
    responses={200: {"content": {EVENT_STREAM: {}}, "description": "Events `state` and `progress`"}},
    dependencies=[READ],
)
async def follow_job(
    context: Ctx, tenant: Tenant, job_id: str, request: Request, last_event_id: LastEventId = None
) -> StreamingResponse:
    """Begins with all that has happened, ends when the job has. `state` tells a state and since when; `progress` counts
    and a fraction."""
    if _streams.total() >= MOST_STREAMS or _streams[tenant] >= MOST_STREAMS_OF_A_TENANT:
        raise Overloaded(
            f"expected at most {MOST_STREAMS} event streams at once, and {MOST_STREAMS_OF_A_TENANT} of a tenant; "
            "try again",
            retry_after_seconds=5,
        )
    await run_in_threadpool(_look, context, tenant, job_id)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    events = _events(context, tenant, job_id, Mark.parse(last_event_id), lambda: is_draining(request.scope))
    return StreamingResponse(events, media_type=EVENT_STREAM, headers=headers)


async def _events(
    context: Context, tenant: str, job_id: str, mark: Mark, is_stopping: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Ends early when the server stops: the client reads on with the next one."""
    _streams[tenant] += 1
    try:
        began = told_at = time.monotonic()
        while time.monotonic() - began < STREAM_SECONDS and not is_stopping():
            try:
                job, states = await run_in_threadpool(_look, context, tenant, job_id)
            except NotFound:  # removed meanwhile
                return
            except Unavailable:
                job = None
            for reached, event in news(job, states, mark) if job is not None else ():
                mark, told_at = reached, time.monotonic()
                yield event
            if job is not None and JobState(job.state) in TERMINAL_JOB_STATES:
                return
            if time.monotonic() - told_at >= KEEP_ALIVE_SECONDS:
                told_at = time.monotonic()
                yield b": still there\n\n"
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        _streams[tenant] -= 1


def _look(context: Context, tenant: str, job_id: str) -> tuple[Job, list[tuple[JobState, datetime]]]:
    with context.database.begin() as session:
        row = jobs.find(session, job_id, tenant=tenant)
        return described(session, row, with_latencies=False), states_of(row)


def states_of(row: JobRow) -> list[tuple[JobState, datetime]]:
    """The states that the job has been in, and since when, in order."""
    stamps = [(state, getattr(row, f"{state.value}_at", None)) for state in JobState]
    passed = [(state, moment) for state, moment in stamps if moment is not None]
    order = list(JobState)
    passed.sort(key=lambda pair: (pair[1], pair[0] in TERMINAL_JOB_STATES, order.index(pair[0])))
    return [(JobState.VALIDATING, row.created_at), *passed]


def news(job: Job, states: list[tuple[JobState, datetime]], mark: Mark) -> Iterator[tuple[Mark, bytes]]:
    """What was not told yet, each with the mark that follows it. Progress comes before the last state."""
    has_ended = JobState(job.state) in TERMINAL_JOB_STATES
    last = len(states) - 1 if has_ended else len(states)
    for number in range(mark.num_states, last):
        mark = Mark(number + 1, mark.progress)
        yield mark, _state(mark, *states[number])
    progress = f"{job.num_completed}-{job.num_failed}-{job.progress.fraction:.4f}"
    if progress != mark.progress:
        mark = Mark(mark.num_states, progress)
        yield mark, _event(mark, "progress", _counts(job))
    for number in range(max(last, mark.num_states), len(states)):
        mark = Mark(number + 1, mark.progress)
        yield mark, _state(mark, *states[number])


def _state(mark: Mark, state: JobState, since: datetime) -> bytes:
    return _event(mark, "state", {"state": state.value, "since": since.isoformat()})


def _counts(job: Job) -> dict[str, object]:
    return {
        "fraction": job.progress.fraction,
        "message": job.progress.message,
        "num_requests": job.num_requests,
        "num_completed": job.num_completed,
        "num_failed": job.num_failed,
        "completion_tokens": job.completion_tokens,
    }


def _event(mark: Mark, name: str, data: dict[str, object]) -> bytes:
    return f"id: {mark}\nevent: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"
