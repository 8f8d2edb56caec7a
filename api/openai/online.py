"""An online request: a job of one request, whose answer is waited for.

The request is committed before it is sent, so it is run like any other; a Redis stream wakes the waiter, who reads the
answer from PostgreSQL. Whoever leaves, or waits too long, cancels; but a request with an Idempotency-Key goes on when
its client leaves, and whoever repeats it waits for the same job.
"""

import logging
from datetime import timedelta

from anyio import CancelScope, current_time, sleep
from fastapi import Request, Response
from redis.exceptions import RedisError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.context import Context
from api.errors import SERVER_ERROR, error_response
from api.prompts import count_prompt_tokens
from core.errors import Interrupted, InvalidRequest, NotFound, Unsupported
from core.job import TERMINAL_JOB_STATES, JobState, ServiceClass
from core.openai.completion import CompletionRequest
from core.openai.request import check_kind, parse_request
from db import idempotency, jobs, models, results
from db.idempotency import Key
from db.jobs import NewOnlineRequest
from db.tables import JobRow, OutcomeRow
from tasks.relay import answer_stream

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PAUSE_SECONDS = 0.05
EXPIRY_MARGIN_SECONDS = 30.0  # whoever waits gives up first
CLIENT_CLOSED_REQUEST = 499


async def answer(context: Context, tenant: str, request: Request, endpoint: str, once: Key | None) -> Response:
    _check_content_type(request)
    body = await request.body()
    job = await run_in_threadpool(_submit, context, tenant, endpoint, body, once)
    outcome = None
    will_return = False
    try:
        await run_in_threadpool(context.messages.wake_up, ServiceClass.ONLINE, job.model or "", f"{job.public_id}#0")
        outcome = await _wait(context, request, job)
        will_return = once is not None
    finally:
        if outcome is None and not will_return:  # nobody waits any more, whatever the reason
            with CancelScope(shield=True):
                await run_in_threadpool(_cancel, context, job)
    return _response(outcome)


def _check_content_type(request: Request) -> None:
    """Browsers let any page send other types across origins without asking."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest(f"expected Content-Type application/json, got {content_type!r}", param="content-type")


def _response(outcome: OutcomeRow | None) -> Response:
    if outcome is None:
        return error_response(CLIENT_CLOSED_REQUEST, "client_closed_request", "the client closed the connection")
    if outcome.status_code is None:
        return error_response(SERVER_ERROR, "not_executed", "the request was stopped before it could run")
    return Response(outcome.body, status_code=outcome.status_code, media_type="application/json")


def _submit(context: Context, tenant: str, endpoint: str, body: bytes, once: Key | None) -> JobRow:
    parsed = parse_request(endpoint, body)
    if parsed.streaming is not None:
        raise Unsupported("stream=True is not offered; leave it out", param="stream")
    if isinstance(parsed, CompletionRequest):
        count_prompt_tokens(context, parsed.model, parsed)
    lifetime = timedelta(seconds=context.settings.online_timeout_seconds + EXPIRY_MARGIN_SECONDS)
    online = NewOnlineRequest(
        endpoint=endpoint, model=parsed.model, body=body.decode(), expires_after=lifetime, tenant=tenant
    )
    with context.database.begin() as session:
        earlier = _earlier(session, tenant, once)
        if earlier is not None:
            return earlier
        check_model(session, endpoint, parsed.model)
        job = jobs.create_online(session, online)
        idempotency.remember(session, once, job.public_id)
        return job


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


async def _wait(context: Context, request: Request, job: JobRow) -> OutcomeRow | None:
    """The outcome, or None when the client has gone. Raises Interrupted when it takes too long."""
    deadline = current_time() + context.settings.online_timeout_seconds
    while current_time() < deadline:
        await _sleep_until_told(context, job)
        outcome = await run_in_threadpool(_read, context, job)
        if outcome is not None:
            return outcome
        await sleep(PAUSE_SECONDS)
        if await request.is_disconnected():
            return None
    raise Interrupted(
        f"no answer within {context.settings.online_timeout_seconds:.0f} s; the request was cancelled. "
        "Try again, or submit it as a batch"
    )


async def _sleep_until_told(context: Context, job: JobRow) -> None:
    try:
        await context.redis.xread({answer_stream(job.public_id): "0"}, count=1, block=int(LOOK_SECONDS * 1000))
    except RedisError as error:
        logger.warning("job %s: waiting without Redis: %s", job.public_id, error)
        await sleep(LOOK_SECONDS)


def _read(context: Context, job: JobRow) -> OutcomeRow | None:
    with context.database.begin() as session:
        return results.online_outcome(session, job.id)


def _cancel(context: Context, job: JobRow) -> None:
    with context.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
