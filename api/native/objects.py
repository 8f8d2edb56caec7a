"""A job as our own routes show it: what OpenAI's objects have room for, and what they have not."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from core.job import TERMINAL_JOB_STATES, JobKind, JobState
from db import jobs
from db.jobs import Progress
from db.native import heavy, listing
from db.native.heavy import HeavyProgress
from db.tables import JobRow, OutcomeRow


class JobProgress(BaseModel):
    """fraction: of the rows, or what a job without rows says itself, [0, 1]."""

    fraction: float
    message: str = ""


class Job(BaseModel):
    """latencies: seconds; `ttft_…` from the arrival at the engine, `wall_seconds` from the first request's arrival
    there to the last answer. parameters, device, result: of a job that is no inference: what it is to do, where it
    ran last (`device@node`), and what came of it."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    service_class: str
    state: str
    model: str | None
    priority: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    deadline: datetime | None
    num_requests: int
    num_completed: int
    num_failed: int
    prompt_tokens: int
    completion_tokens: int
    progress: JobProgress
    latencies: dict[str, float] = Field(default_factory=dict)
    parameters: dict[str, Any] | None = None
    device: str | None = None
    result: dict[str, Any] | None = None
    errors: dict[str, Any] | None
    endpoint: str | None
    input_file_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    metadata: dict[str, Any] | None


class JobPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Job]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    id: str
    object: Literal["job.deleted"] = "job.deleted"
    deleted: Literal[True] = True


def described(session: Session, job: JobRow, *, with_latencies: bool = True) -> Job:
    """All there is to say of one job; latencies are read from all of its outcomes."""
    counts = None if has_ended(job) else jobs.progress(session, [job.id]).get(job.id)
    if job.kind == JobKind.INFERENCE:
        return job_object(job, counts, latencies=jobs.latencies(session, job) if with_latencies else None)
    said = heavy.progress(session, [job.id]).get(job.id)
    shown = job_object(job, counts, said=said)
    shown.parameters = json_object(listing.only_request(session, job))
    shown.result = result_of(listing.only_outcome(session, job))
    shown.device = None if said is None else said.device
    return shown


def job_object(
    job: JobRow,
    counts: Progress | None = None,
    *,
    latencies: Mapping[str, float] | None = None,
    said: HeavyProgress | None = None,
) -> Job:
    """counts: of a job that has not ended, whose chunks hold them. said: by a job that is no inference."""
    counted = counts or job
    return Job(
        id=job.public_id,
        kind=job.kind,
        service_class=job.service_class,
        state=job.state,
        model=job.model,
        priority=job.priority,
        created_at=job.created_at,
        started_at=job.in_progress_at,
        ended_at=ended_at(job),
        deadline=job.expires_at,
        num_requests=job.num_requests,
        num_completed=counted.num_completed,
        num_failed=counted.num_failed,
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        progress=progress_of(job, counted, said),
        latencies=dict(latencies or {}),
        errors=job.errors,
        endpoint=job.endpoint,
        input_file_id=job.input_file_id,
        output_file_id=job.output_file_id,
        error_file_id=job.error_file_id,
        metadata=job.user_metadata,
    )


def progress_of(job: JobRow, counts: Progress | JobRow, said: HeavyProgress | None) -> JobProgress:
    if said is not None and not has_ended(job):
        return JobProgress(fraction=said.fraction, message=said.message)
    num_done = counts.num_completed + counts.num_failed
    return JobProgress(fraction=num_done / job.num_requests if job.num_requests else 0.0)


def ended_at(job: JobRow) -> datetime | None:
    moment = getattr(job, f"{job.state}_at", None) if has_ended(job) else None
    return moment if isinstance(moment, datetime) else None


def has_ended(job: JobRow) -> bool:
    return JobState(job.state) in TERMINAL_JOB_STATES


def json_object(text: str | None) -> dict[str, Any] | None:
    return None if text is None else msgspec.json.decode(text, type=dict[str, Any])


def result_of(outcome: OutcomeRow | None) -> dict[str, Any] | None:
    """Of a job that is no inference; None where it did not come to one."""
    return json_object(outcome.body) if outcome is not None and outcome.status_code == 200 else None
