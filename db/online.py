"""Online jobs while somebody waits for them: their end, and how long they go on for a client that left."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from core.job import JobState
from db.connection import Statement
from db.tables import ChunkRow, JobRow, OutcomeRow, RequestRow

# Through `finalizing`, as every job, but without a stop there.
_COMPLETE = Statement("""
UPDATE jobs SET state = 'completed', finalizing_at = now(), completed_at = now(), num_completed = seen.completed,
    num_failed = seen.failed, prompt_tokens = seen.prompt, completion_tokens = seen.completion,
    cached_tokens = seen.cached
FROM (SELECT count(*) FILTER (WHERE status_code = 200) AS completed,
             count(*) FILTER (WHERE status_code IS DISTINCT FROM 200) AS failed,
             coalesce(sum(prompt_tokens), 0) AS prompt, coalesce(sum(completion_tokens), 0) AS completion,
             coalesce(sum(cached_tokens), 0) AS cached
      FROM outcomes WHERE job_id = :job_id) AS seen
WHERE id = :job_id AND state = 'in_progress' AND ending IS NULL
  AND seen.completed + seen.failed >= jobs.num_requests
RETURNING id
""")


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


def complete(session: Session, job_id: int) -> bool:
    """Ends a job that has all its outcomes; False where it is being stopped, has ended, or lacks one."""
    return _COMPLETE.execute(session, {"job_id": job_id}).fetchone() is not None
