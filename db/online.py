"""Online jobs while somebody waits for them: their end, and how long they go on for a client that left."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from core.job import JobState
from db.tables import ChunkRow, JobRow, OutcomeRow, RequestRow


@dataclass(frozen=True, slots=True)
class OnlineEnd:
    """outcomes: of every request, in order. attempt: how often the job's one chunk was begun."""

    outcomes: list[OutcomeRow]
    attempt: int


def read_end(session: Session, job: JobRow) -> OnlineEnd | None:
    """None while an outcome is missing."""
    attempt = select(func.max(ChunkRow.attempt)).where(ChunkRow.job_id == job.id).scalar_subquery()
    query = select(OutcomeRow, attempt).where(OutcomeRow.job_id == job.id).order_by(OutcomeRow.index)
    rows = session.execute(query).all()
    if len(rows) < job.num_requests:
        return None
    return OnlineEnd([row[0] for row in rows], rows[0][1] or 0)


def first_body(session: Session, job: JobRow) -> str:
    """What the job's first request asks for."""
    query = select(RequestRow.body).where(RequestRow.job_id == job.id, RequestRow.index == 0)
    return session.scalar(query) or ""


def set_expiry(session: Session, job: JobRow, after: timedelta) -> None:
    """How long the job may still go on, unless it ends or is ended first."""
    session.execute(
        update(JobRow)
        .where(JobRow.id == job.id, JobRow.state == JobState.IN_PROGRESS.value, JobRow.ending.is_(None))
        .values(expires_at=func.clock_timestamp() + after)
    )
