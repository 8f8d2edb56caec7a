"""Jobs as our own routes make and change them. What a job of another kind than inference is to do is its one request,
and its result that request's outcome; so they are claimed, fenced, cancelled and counted like everything else."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, literal, select, update
from sqlalchemy.orm import Session

from core.errors import Conflict, InvalidRequest
from core.job import TERMINAL_JOB_STATES, JobKind, JobState, ServiceClass
from db import jobs
from db.jobs import new_public_id
from db.tables import JobRow


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """deadline: what has not run by then expires. endpoint, input_file_id: of inference jobs."""

    kind: JobKind
    tenant: str
    key_id: int | None = None
    service_class: ServiceClass = ServiceClass.BATCH
    model: str | None = None
    endpoint: str | None = None
    input_file_id: str | None = None
    priority: int
    deadline: datetime | None
    user_metadata: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobChange:
    """None leaves a value as it is."""

    priority: int | None = None
    deadline: datetime | None = None
    user_metadata: Mapping[str, str] | None = None


def create(session: Session, new: NewJob) -> JobRow:
    """A job that is `validating`: its requests are still to come, from its file or from the caller. Raises
    InvalidRequest when its deadline has passed."""
    _check_deadline(session, new.deadline)
    job = JobRow(
        public_id=new_public_id("job"),
        tenant=new.tenant,
        key_id=new.key_id,
        kind=new.kind.value,
        service_class=new.service_class.value,
        state=JobState.VALIDATING.value,
        model=new.model,
        endpoint=new.endpoint,
        input_file_id=new.input_file_id,
        priority=new.priority,
        expires_at=new.deadline,
        user_metadata=None if new.user_metadata is None else dict(new.user_metadata),
    )
    session.add(job)
    session.flush()
    session.refresh(job)
    return job


def change(session: Session, job: JobRow, wanted: JobChange) -> None:
    """A new priority holds for what has not started. Raises Conflict when the job has ended, InvalidRequest when the
    deadline has passed."""
    _check_deadline(session, wanted.deadline)
    values: dict[str, Any] = {}
    if wanted.deadline is not None:
        values["expires_at"] = wanted.deadline
    if wanted.user_metadata is not None:
        values["user_metadata"] = dict(wanted.user_metadata)
    ended = [state.value for state in TERMINAL_JOB_STATES]
    statement = update(JobRow).where(JobRow.id == job.id, JobRow.state.not_in(ended)).returning(JobRow.id)
    if session.execute(statement.values(values or {"state": JobRow.state})).scalar_one_or_none() is None:
        raise Conflict(f"expected a job that has not ended, got one that is {job.state}")
    if wanted.priority is not None:
        jobs.set_priority(session, job, wanted.priority)
    session.refresh(job)


def _check_deadline(session: Session, deadline: datetime | None) -> None:
    if deadline is not None and session.scalar(select(literal(deadline) <= func.clock_timestamp())):
        raise InvalidRequest(f"expected a deadline in the future, got {deadline.isoformat()}", param="deadline")
