"""The requests of a job, one by one: their state, what they cost in tries, and the last error that another try may have
mended. There is no column for the state: it is read off outcomes and retries."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

from core.job import RequestState
from db.tables import JobRow


@dataclass(frozen=True, slots=True)
class RequestLine:
    """attempt: of its chunk, under which its outcome was written. num_retries: tries that failed and were followed, or
    will be followed at `retry_at`, by another one; `error_code` and `error_message` are the last one's."""

    index: int
    custom_id: str
    state: RequestState
    status_code: int | None
    attempt: int | None
    num_retries: int
    error_code: str | None
    error_message: str | None
    retry_at: datetime | None


_LINES = text("""
SELECT * FROM (
    SELECT r.index, r.custom_id,
        CASE WHEN o.index IS NULL AND retries.index IS NULL THEN 'waiting'
             WHEN o.index IS NULL THEN 'retrying'
             WHEN o.status_code IS NULL THEN 'unexecuted'
             WHEN o.status_code = 200 THEN 'succeeded'
             ELSE 'failed' END AS state,
        o.status_code, o.attempt, coalesce(retries.num_attempts, 0), retries.code, retries.message,
        CASE WHEN o.index IS NULL THEN retries.retry_at END
    FROM requests r
    LEFT JOIN outcomes o ON o.job_id = r.job_id AND o.index = r.index
    LEFT JOIN retries ON retries.job_id = r.job_id AND retries.index = r.index
    WHERE r.job_id = :job_id AND r.index > :after
) AS line
WHERE CAST(:state AS text) IS NULL OR line.state = :state
ORDER BY line.index LIMIT :limit
""")


def list_requests(
    session: Session, job: JobRow, *, state: RequestState | None, after: int, limit: int
) -> list[RequestLine]:
    """In order, those with an index above `after`; `state` None: all."""
    values = {"job_id": job.id, "state": state, "after": after, "limit": limit}
    found = session.execute(_LINES, values).all()
    return [RequestLine(row[0], row[1], RequestState(row[2]), *row[3:]) for row in found]
