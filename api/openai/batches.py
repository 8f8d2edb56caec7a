"""`/v1/batches`: create, list, show, cancel."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.orm import Session

from api.access.scopes import READ, SUBMIT
from api.context import ADMIT_JOB, Context, Ctx, Tenant, Who, page
from api.idempotency import Once
from api.openai.files import MAX_EXPIRY_SECONDS, MIN_EXPIRY_SECONDS
from core.access import Identity
from core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from core.job import DEFAULT_PRIORITY, MAX_PRIORITY, MIN_PRIORITY, TERMINAL_JOB_STATES, JobState
from core.openai.request import ENDPOINTS
from db import files, idempotency, jobs
from db.jobs import NewBatch, Progress
from db.tables import JobRow

router = APIRouter(prefix="/v1/batches", tags=["batches"])

MAX_WINDOW = timedelta(days=7)
_WINDOW = re.compile(r"([1-9]\d{0,4})(h|m)")
_STAMPS = (
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


MAX_METADATA_PAIRS = 16
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class OutputExpiresAfter(BaseModel):
    """When the files that the batch writes expire, from the moment that they are made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_EXPIRY_SECONDS, le=MAX_EXPIRY_SECONDS)]


class CreateBatch(BaseModel):
    """As OpenAI's, and `priority` beside it: 0 to 9, 9 runs first."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"input_file_id": "file-…", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        },
    )

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: Annotated[dict[MetadataKey, MetadataValue] | None, Field(max_length=MAX_METADATA_PAIRS)] = None
    output_expires_after: OutputExpiresAfter | None = None
    priority: Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY)] = DEFAULT_PRIORITY


@router.post("", summary="Create a batch from an uploaded file", dependencies=[SUBMIT, ADMIT_JOB])
def create_batch(context: Ctx, who: Who, body: CreateBatch, once: Once) -> dict[str, Any]:
    """A priority above the key's is lowered to it."""
    tenant = who.tenant
    batch = _new_batch(who, body)
    with context.database.begin() as session:
        earlier = idempotency.recall(session, once)
        if earlier is not None:
            return _shown(session, jobs.find(session, earlier, tenant=tenant))
        _check_input_file(files.find(session, body.input_file_id, tenant=tenant).purpose)
        context.admission.check_jobs(session, who)
        job = jobs.create_batch(session, batch)
        idempotency.remember(session, once, job.public_id)
    _send_quietly(context, job.public_id)
    return batch_object(job, None)


def _new_batch(who: Identity, body: CreateBatch) -> NewBatch:
    if body.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"expected an endpoint of {', '.join(ENDPOINTS)}, got {body.endpoint!r}", param="endpoint")
    return NewBatch(
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        expires_after=parse_window(body.completion_window),
        output_expires_after_seconds=body.output_expires_after.seconds if body.output_expires_after else None,
        user_metadata=dict(body.metadata) if body.metadata is not None else None,
        tenant=who.tenant,
        key_id=who.key_id,
        priority=min(body.priority, who.max_priority),
    )


def _check_input_file(purpose: str) -> None:
    if purpose != "batch":
        raise InvalidRequest(
            f"expected a file uploaded with purpose `batch`, got one with {purpose!r}", param="input_file_id"
        )


def _send_quietly(context: Context, job: str) -> None:
    """The batch is committed: a broker that is away delays its validation, but does not refuse it."""
    try:
        context.messages.validate_batch(job)
    except Unavailable:
        return


def parse_window(text: str) -> timedelta:
    """`24h` as OpenAI has it, or other hours and minutes. Raises InvalidRequest."""
    match = _WINDOW.fullmatch(text)
    window = timedelta(**{"hours" if match[2] == "h" else "minutes": int(match[1])}) if match else None
    if window is None or window > MAX_WINDOW:
        raise InvalidRequest(
            f"expected a completion_window such as `24h` (minutes to 7 days), got {text!r}", param="completion_window"
        )
    return window


@router.get("", summary="List batches, newest first", dependencies=[READ])
def list_batches(
    context: Ctx, tenant: Tenant, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    with context.database.begin() as session:
        rows = jobs.list_batches(session, tenant=tenant, after=after, limit=limit + 1)
        progress = jobs.progress(session, _running(rows))
    return page([batch_object(row, progress.get(row.id)) for row in rows], limit)


@router.get("/{batch_id}", summary="Show a batch", dependencies=[READ])
def get_batch(context: Ctx, tenant: Tenant, batch_id: str) -> dict[str, Any]:
    with context.database.begin() as session:
        return _shown(session, _find(session, batch_id, tenant))


def _shown(session: Session, job: JobRow) -> dict[str, Any]:
    return batch_object(job, jobs.progress(session, _running([job])).get(job.id))


@router.post("/{batch_id}/cancel", summary="Cancel a batch; finished rows are kept", dependencies=[SUBMIT])
def cancel_batch(context: Ctx, tenant: Tenant, batch_id: str) -> dict[str, Any]:
    with context.database.begin() as session:
        job = _find(session, batch_id, tenant)
        if JobState(job.state) in TERMINAL_JOB_STATES:
            raise Conflict(f"expected a batch that has not ended, got one that is {job.state}")
        jobs.stop(session, job, JobState.CANCELLED)
        session.refresh(job)
        progress = jobs.progress(session, [job.id]).get(job.id)
    context.broker.end_if_idle(job, progress)
    return batch_object(job, progress)


def _find(session: Session, batch_id: str, tenant: str) -> JobRow:
    job = jobs.find(session, batch_id, tenant=tenant)
    if job.input_file_id is None:
        raise NotFound(f"no batch with id {batch_id!r}", param="id")
    return job


def _running(rows: Sequence[JobRow]) -> list[int]:
    """Jobs whose counters are still in their chunks."""
    return [row.id for row in rows if JobState(row.state) not in TERMINAL_JOB_STATES]


def batch_object(job: JobRow, progress: Progress | None) -> dict[str, Any]:
    """OpenAI's batch object."""
    counts = progress or job
    usage = {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": {"cached_tokens": counts.cached_tokens},
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
    }
    return {
        "id": job.public_id,
        "object": "batch",
        "endpoint": job.endpoint,
        "model": job.model,
        "errors": job.errors,
        "input_file_id": job.input_file_id,
        "completion_window": job.completion_window,
        "status": job.state,
        "output_file_id": job.output_file_id,
        "error_file_id": job.error_file_id,
        "created_at": _seconds(job.created_at),
        **{name: _seconds(getattr(job, name)) for name in _STAMPS},
        "output_expires_after": _output_expiry(job.output_expires_after_seconds),
        "request_counts": {
            "total": job.num_requests,
            "completed": counts.num_completed,
            "failed": counts.num_failed,
        },
        "usage": usage,
        "metadata": job.user_metadata,
    }


def _output_expiry(seconds: int | None) -> dict[str, Any] | None:
    return None if seconds is None else {"anchor": "created_at", "seconds": seconds}


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
