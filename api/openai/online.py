"""An online request: a job of one request, whose answer is waited for, or told while it grows.

The request is committed before it is sent, so it is run like any other. Whoever leaves, or waits too long, cancels; but
a request with an Idempotency-Key goes on when its client leaves, and whoever repeats it waits for the same job; one
with `resume_seconds` goes on so long.
"""

import logging
from dataclasses import dataclass, replace
from datetime import timedelta

from anyio import CancelScope, move_on_after
from fastapi import Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.access.admission import estimated_tokens, limits_jobs
from api.access.visit import Visit, visit_of
from api.context import Context
from api.errors import error_response
from api.prompts import count_prompt_tokens
from api.streaming.ends import Waiter
from api.streaming.following import Ended, await_end, look
from api.streaming.leaving import unless_left
from api.streaming.narration import Narrator, first_failure
from api.streaming.response import AnswerStream, Ending, failed_response, too_late
from core.errors import InvalidRequest
from core.job import DEFAULT_PRIORITY, TERMINAL_JOB_STATES, JobState
from core.openai.chunks import Heading, whole_body
from core.openai.completion import CompletionRequest, StreamOptions, split_prompts
from core.openai.progress import new_progress, parse_progress
from core.openai.request import InferenceRequest, parse_request
from db import idempotency, jobs, online, results
from db.idempotency import Key
from db.jobs import NewOnlineRequest
from db.tables import JobRow

logger = logging.getLogger(__name__)

EXPIRY_MARGIN_SECONDS = 30.0  # whoever waits gives up first
CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True, slots=True)
class _Admitted:
    """parsed: its first request. job: that the same call made before, or that is committed already."""

    parsed: InferenceRequest
    wanted: NewOnlineRequest
    job: JobRow | None = None


async def answer(context: Context, tenant: str, request: Request, endpoint: str, once: Key | None) -> Response:
    check_content_type(request)
    body = await request.body()
    await context.broker.check()
    visit = visit_of(request)
    admitted = await run_in_threadpool(_admit, context, visit, endpoint, body, once)
    parsed = admitted.parsed
    public_id = jobs.new_online_id()
    with context.ends.expecting(public_id) as waiter:
        job = admitted.job or await context.intake.put(replace(admitted.wanted, public_id=public_id))
        visit.job_id = job.id
        ending = _ending(context, job, parsed, is_repeatable=once is not None)
        if isinstance(parsed, CompletionRequest) and parsed.streaming is not None:
            return AnswerStream(context, job, narrate(job, parsed, None), ending)
        return await _whole_answer(context, request, job, ending, waiter)


def check_content_type(request: Request) -> None:
    """Browsers let any page send other types across origins without asking."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest(f"expected Content-Type application/json, got {content_type!r}", param="content-type")


def narrate(job: JobRow, parsed: CompletionRequest, last_event_id: str | None) -> Narrator:
    """Raises InvalidRequest where the id is not of an event of this answer."""
    num_choices = job.num_requests * parsed.num_answers
    progress = parse_progress(last_event_id, num_choices) if last_event_id else new_progress(num_choices)
    options = parsed.streaming or StreamOptions()
    created = int(job.created_at.timestamp())
    heading = Heading(job.endpoint or "", f"{job.public_id}-0", parsed.model, created, options)
    return Narrator(heading, job.num_requests, parsed.num_answers, progress)


def _ending(context: Context, job: JobRow, parsed: InferenceRequest, *, is_repeatable: bool) -> Ending:
    """is_repeatable: whoever comes again with the same Idempotency-Key finds the job."""

    async def left() -> None:
        if not is_repeatable:
            await run_in_threadpool(let_go, context, job, parsed)

    async def failed() -> None:
        await run_in_threadpool(cancel, context, job)

    return Ending(left, failed)


async def _whole_answer(context: Context, request: Request, job: JobRow, ending: Ending, waiter: Waiter) -> Response:
    ended: Ended | None = None
    has_left = False
    try:
        is_new = waiter.job_public_id == job.public_id
        ended = await unless_left(request.receive, lambda: wait(context, job, waiter if is_new else None))
        has_left = ended is None
    finally:
        if ended is None:  # nobody waits any more, whatever the reason
            with CancelScope(shield=True):
                await (ending.left() if has_left else ending.failed())
    if ended is None:
        return error_response(CLIENT_CLOSED_REQUEST, "client_closed_request", "the client closed the connection")
    failure = first_failure(ended.outcomes)
    if failure is not None:
        return failed_response(failure)
    return Response(whole_body([outcome.body for outcome in ended.outcomes]), media_type="application/json")


async def wait(context: Context, job: JobRow, waiter: Waiter | None = None) -> Ended:
    """waiter: where somebody expects the end since before the job was there. Raises Interrupted when it takes too
    long."""
    seconds = context.settings.online_timeout_seconds
    with move_on_after(seconds):
        if waiter is not None:
            return await await_end(context, job, waiter)
        with context.ends.expecting(job.public_id) as late:
            return await look(context, job) or await await_end(context, job, late)
    raise too_late(seconds)


def _admit(context: Context, visit: Visit, endpoint: str, body: bytes, once: Key | None) -> _Admitted:
    """A call with an Idempotency-Key, or of whom may have only so many jobs, is committed here."""
    who = visit.identity
    bodies = split_prompts(endpoint, body)
    requests = [parse_request(endpoint, one) for one in bodies]
    parsed, *_ = requests
    first, *more = [one.decode() for one in bodies]
    wanted = NewOnlineRequest(
        endpoint=endpoint,
        model=parsed.model,
        body=first,
        expires_after=lifetime(context),
        tenant=who.tenant,
        key_id=who.key_id,
        priority=min(DEFAULT_PRIORITY, who.max_priority),
        more_bodies=tuple(more),
    )
    context.admission.take_request(visit)
    if once is not None and (earlier := _repeated(context, who.tenant, once)) is not None:
        return _Admitted(parsed, wanted, earlier)
    context.served.check(endpoint, parsed.model)
    context.admission.check_room(visit, parsed.model)
    num_tokens = estimated_tokens(_count(context, requests), len(body), requests)
    context.admission.admit_online(visit, parsed.model, num_tokens)
    must_be_alone = once is not None or limits_jobs(who)
    return _Admitted(parsed, wanted, _commit_alone(context, visit, wanted, once) if must_be_alone else None)


def _commit_alone(context: Context, visit: Visit, wanted: NewOnlineRequest, once: Key | None) -> JobRow:
    """In a transaction that holds what must not change meanwhile, and wakes a worker, unless the same call was
    quicker. Raises RateLimited."""
    with context.database.begin() as session:
        earlier = _earlier(session, wanted.tenant, once)
        if earlier is None:
            context.admission.check_online(session, visit)
            job = jobs.create_online(session, wanted)
            idempotency.remember(session, once, job.public_id)
    if earlier is None:
        context.broker.wake_up(job)
        return job
    context.admission.give_back(visit)
    return earlier


def _repeated(context: Context, tenant: str, once: Key) -> JobRow | None:
    """Such a call finds its job, however full it is."""
    with context.database.begin() as session:
        return _earlier(session, tenant, once)


def _count(context: Context, requests: list[InferenceRequest]) -> int | None:
    """Prompt tokens of all of them; None where that is not known of one."""
    counts = [
        count_prompt_tokens(context, request.model, request) if isinstance(request, CompletionRequest) else None
        for request in requests
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def lifetime(context: Context) -> timedelta:
    return timedelta(seconds=context.settings.online_timeout_seconds + EXPIRY_MARGIN_SECONDS)


def _earlier(session: Session, tenant: str, once: Key | None) -> JobRow | None:
    """The job that the same call made before, unless it was stopped without an answer: then the call runs anew."""
    public_id = idempotency.recall(session, once)
    if public_id is None:
        return None
    job = jobs.find(session, public_id, tenant=tenant)
    outcome = results.online_outcome(session, job.id)
    has_answer = outcome is not None and outcome.status_code is not None
    is_running = job.ending is None and JobState(job.state) not in TERMINAL_JOB_STATES
    return job if has_answer or is_running else None


def let_go(context: Context, job: JobRow, parsed: InferenceRequest) -> None:
    """Ends a job that nobody waits for, at once or when its client had time to come back."""
    seconds = parsed.streaming.resume_seconds if parsed.streaming else None
    if not seconds:
        cancel(context, job)
        return
    with context.database.begin() as session:
        online.set_expiry(session, job, timedelta(seconds=seconds))


def cancel(context: Context, job: JobRow) -> None:
    """A job that is past stopping stays as it is."""
    with context.database.begin() as session:
        is_stopping = jobs.stop(session, job, JobState.CANCELLED)
        progress = jobs.progress(session, [job.id]).get(job.id) if is_stopping else None
    if is_stopping:
        context.broker.end_if_idle(job, progress)
