"""An online request: a job of one request, whose answer is waited for, or told while it grows.

The request is committed before it is sent, so it is run like any other. Whoever leaves, or waits too long, cancels; but
a request with an Idempotency-Key goes on when its client leaves, and whoever repeats it waits for the same job; one
with `resume_seconds` goes on so long.
"""

import logging
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from anyio import CancelScope, move_on_after
from fastapi import Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.access.admission import estimated_tokens
from api.access.visit import Visit, visit_of
from api.context import Context
from api.errors import error_response
from api.prompts import count_prompt_tokens
from api.streaming.following import Ended, follow
from api.streaming.leaving import unless_left
from api.streaming.narration import Narrator, first_failure
from api.streaming.response import AnswerStream, Ending, failed_response, too_late
from core.errors import InvalidRequest, NotFound
from core.job import DEFAULT_PRIORITY, TERMINAL_JOB_STATES, JobState
from core.openai.chunks import Heading, whole_body
from core.openai.completion import CompletionRequest, StreamOptions, split_prompts
from core.openai.progress import new_progress, parse_progress
from core.openai.request import InferenceRequest, check_kind, parse_request
from db import idempotency, jobs, models, online, results
from db.idempotency import Key
from db.jobs import NewOnlineRequest
from db.tables import JobRow

logger = logging.getLogger(__name__)

EXPIRY_MARGIN_SECONDS = 30.0  # whoever waits gives up first
CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True, slots=True)
class Submitted:
    job: JobRow
    parsed: InferenceRequest


async def answer(context: Context, tenant: str, request: Request, endpoint: str, once: Key | None) -> Response:
    check_content_type(request)
    body = await request.body()
    await context.broker.check()
    submitted = await run_in_threadpool(_submit, context, visit_of(request), endpoint, body, once)
    ending = _ending(context, submitted, is_repeatable=once is not None)
    job, parsed = submitted.job, submitted.parsed
    if isinstance(parsed, CompletionRequest) and parsed.streaming is not None:
        return AnswerStream(context, job, narrate(job, parsed, None), ending)
    return await _whole_answer(context, request, job, ending)


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


def _ending(context: Context, submitted: Submitted, *, is_repeatable: bool) -> Ending:
    """is_repeatable: whoever comes again with the same Idempotency-Key finds the job."""
    job, parsed = submitted.job, submitted.parsed

    async def left() -> None:
        if not is_repeatable:
            await run_in_threadpool(let_go, context, job, parsed)

    async def failed() -> None:
        await run_in_threadpool(cancel, context, job)

    return Ending(left, failed)


async def _whole_answer(context: Context, request: Request, job: JobRow, ending: Ending) -> Response:
    ended: Ended | None = None
    has_left = False
    try:
        ended = await unless_left(request.receive, lambda: wait(context, job))
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


async def wait(context: Context, job: JobRow) -> Ended:
    """Raises Interrupted when it takes too long."""
    seconds = context.settings.online_timeout_seconds
    with move_on_after(seconds):
        async with aclosing(follow(context, job)) as tellings:
            async for told in tellings:
                if isinstance(told, Ended):
                    return told
    raise too_late(seconds)


def _submit(context: Context, visit: Visit, endpoint: str, body: bytes, once: Key | None) -> Submitted:
    """Commits it, then wakes a worker."""
    submitted = _commit(context, visit, endpoint, body, once)
    context.broker.wake_up(submitted.job)
    return submitted


def _commit(context: Context, visit: Visit, endpoint: str, body: bytes, once: Key | None) -> Submitted:
    who = visit.identity
    bodies = split_prompts(endpoint, body)
    requests = [parse_request(endpoint, one) for one in bodies]
    parsed, *_ = requests
    context.admission.take_request(visit)
    if context.codecs.counts(parsed.model) and not _is_repeated(context, who.tenant, once):
        context.admission.check_room(visit, parsed.model)
    num_prompt_tokens = _count(context, requests)
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
    with context.database.begin() as session:
        earlier = _earlier(session, who.tenant, once)
        if earlier is not None:
            return Submitted(earlier, parsed)
        check_model(session, endpoint, parsed.model)
        num_tokens = estimated_tokens(num_prompt_tokens, len(body), requests)
        context.admission.admit_online(session, visit, parsed.model, num_tokens)
        job = jobs.create_online(session, wanted)
        idempotency.remember(session, once, job.public_id)
        visit.job_id = job.id
        return Submitted(job, parsed)


def _is_repeated(context: Context, tenant: str, once: Key | None) -> bool:
    """Such a call finds its job, however full it is."""
    if once is None:
        return False
    with context.database.begin() as session:
        return _earlier(session, tenant, once) is not None


def _count(context: Context, requests: list[InferenceRequest]) -> int | None:
    """Prompt tokens of all of them; None where that is not known of one."""
    counts = [
        count_prompt_tokens(context, request.model, request) if isinstance(request, CompletionRequest) else None
        for request in requests
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def check_model(session: Session, endpoint: str, name: str) -> None:
    """Raises NotFound where no engine serves it, InvalidRequest where it is of another kind."""
    model = models.find_served(session, name)
    if model is None:
        raise NotFound(
            f"model {name!r} is not served here; GET /v1/models lists those that are",
            param="model",
            code="model_not_found",
        )
    check_kind(endpoint, name, model.kind)


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
