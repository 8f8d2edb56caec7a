"""Inference jobs from a list of requests or an uploaded file. What is wrong with an inline request is said at once,
naming it; a file is validated by the upkeep worker, like a batch's."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy.orm import Session

from api.context import Context
from api.native.bodies import InferenceBody
from core.access import Identity
from core.chunks import Cutter
from core.errors import InvalidRequest, Unavailable
from core.job import JobKind, JobState
from core.openai.batchfile import BatchFileError, BatchReader
from core.openai.completion import CHAT_ENDPOINT, ENDPOINTS
from db import files, idempotency, intake, jobs, models
from db.idempotency import Key
from db.native import submission
from db.native.submission import NewJob
from db.tables import JobRow


def submit(context: Context, who: Identity, body: InferenceBody, once: Key | None) -> JobRow:
    """Raises InvalidRequest, naming the first request that is wrong, and RateLimited."""
    tenant = who.tenant
    if body.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"expected an endpoint of {', '.join(ENDPOINTS)}, got {body.endpoint!r}", param="endpoint")
    new = NewJob(
        kind=JobKind.INFERENCE,
        tenant=tenant,
        key_id=who.key_id,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        priority=body.priority,
        deadline=body.deadline,
        user_metadata=body.metadata,
    )
    with context.database.begin() as session:
        if (made := idempotency.recall(session, once)) is not None:
            return jobs.find(session, made, tenant=tenant)
        if body.input_file_id is not None:
            _check_purpose(files.find(session, body.input_file_id, tenant=tenant).purpose)
        context.admission.check_jobs(session, who)
        job = submission.create(session, new)
        idempotency.remember(session, once, job.public_id)
        num_chunks = 0 if body.input_file_id is not None else _take_in(context, session, job, body)
    _announce(context, job, num_chunks)
    return job


def _check_purpose(purpose: str) -> None:
    if purpose != "batch":
        raise InvalidRequest(f"expected a file uploaded with purpose `batch`, got {purpose!r}", param="input_file_id")


def _take_in(context: Context, session: Session, job: JobRow, body: InferenceBody) -> int:
    """Writes the requests and cuts them. Returns the number of chunks."""
    settings = context.settings
    known = {row.name for row in models.list_served(session)}
    reader = BatchReader(endpoint=body.endpoint, max_rows=settings.max_batch_rows, known_models=known)
    cutter = Cutter(settings.chunk_rows, settings.chunk_tokens)
    try:
        num_requests = intake.copy_requests(session, job.id, reader.rows(_lines(body)), cutter)
    except BatchFileError as refused:
        first = refused.errors[0]
        place = "prompts" if body.prompts is not None else "requests"
        param = place if first.line is None else f"{place}[{first.line - 1}]"
        raise InvalidRequest(f"{param}: {first.message}", param=param, code=first.code) from refused
    assert reader.model is not None
    cuts = cutter.finish()
    intake.add_chunks(session, job, reader.model, cuts)
    jobs.move(session, job.id, JobState.IN_PROGRESS, {"model": reader.model, "num_requests": num_requests})
    session.refresh(job)
    return len(cuts)


def _lines(body: InferenceBody) -> Iterator[bytes]:
    """As they would stand in a batch file."""
    for index, (custom_id, request) in enumerate(_requests(body)):
        line = {"custom_id": custom_id or f"request-{index}", "method": "POST", "url": body.endpoint, "body": request}
        yield json.dumps(line).encode()  # takes whatever came; the reader says what is wrong with it


def _requests(body: InferenceBody) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    shared = {**(body.parameters or {}), **({} if body.model is None else {"model": body.model})}
    for prompt in body.prompts or ():
        yield None, {**shared, **_question(body.endpoint, prompt)}
    for request in body.requests or ():
        yield request.custom_id, {**shared, **request.body}


def _question(endpoint: str, prompt: str) -> dict[str, Any]:
    if endpoint == CHAT_ENDPOINT:
        return {"messages": [{"role": "user", "content": prompt}]}
    return {"prompt": prompt}


def _announce(context: Context, job: JobRow, num_chunks: int) -> None:
    """The job is committed: a broker that is away delays it, and the reconciler sends again."""
    try:
        if job.state == JobState.VALIDATING:
            context.messages.validate_batch(job.public_id)
        for index in range(min(num_chunks, context.settings.dispatch_window)):
            context.messages.wake_up(job.service_class, job.model or "", f"{job.public_id}#{index}")
    except Unavailable:
        return
