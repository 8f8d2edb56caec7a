"""Outcomes out: the answer to an online request, and the lines of a job's output and error files."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from core.job import JobState
from db.connection import Database
from db.tables import JobRow, OutcomeRow

PAGE_ROWS = 1000


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One request with its outcome; `status_code` None: it never ran and `body` is `{code, message}`."""

    index: int
    custom_id: str
    status_code: int | None
    body: str


_PAGE = text("""
SELECT o.index, r.custom_id, o.status_code, o.body
FROM outcomes o JOIN requests r ON r.job_id = o.job_id AND r.index = o.index
WHERE o.job_id = :job_id AND o.index > :after AND (o.status_code IS NOT DISTINCT FROM 200) = :is_success
ORDER BY o.index LIMIT :limit
""")

_CLOSE = text("""
INSERT INTO outcomes (job_id, index, status_code, body)
SELECT r.job_id, r.index, NULL, :body FROM requests r
WHERE r.job_id = :job_id AND NOT EXISTS (SELECT FROM outcomes o WHERE o.job_id = r.job_id AND o.index = r.index)
ON CONFLICT DO NOTHING
""")

_TOTAL = text("""
UPDATE jobs SET num_completed = seen.completed, num_failed = seen.failed, prompt_tokens = seen.prompt,
    completion_tokens = seen.completion, cached_tokens = seen.cached
FROM (SELECT count(*) FILTER (WHERE status_code = 200) AS completed,
             count(*) FILTER (WHERE status_code IS DISTINCT FROM 200) AS failed,
             coalesce(sum(prompt_tokens), 0) AS prompt, coalesce(sum(completion_tokens), 0) AS completion,
             coalesce(sum(cached_tokens), 0) AS cached
      FROM outcomes WHERE job_id = :job_id) AS seen
WHERE id = :job_id
""")


def rows(database: Database, job_id: int, *, is_success: bool) -> Iterator[ResultRow]:
    """In order of the requests, page by page: flat memory, no long transaction."""
    after = -1
    while True:
        values = {"job_id": job_id, "after": after, "is_success": is_success, "limit": PAGE_ROWS}
        with database.begin() as session:
            page = [ResultRow(*row) for row in session.execute(_PAGE, values)]
        yield from page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].index


def close_unfinished(session: Session, job: JobRow, body: str) -> None:
    """Gives every request without an outcome the outcome that it never ran; `body`: JSON of `{code, message}`."""
    session.execute(_CLOSE, {"job_id": job.id, "body": body})


def total(session: Session, job: JobRow) -> None:
    """Makes the job's counters exact from its outcomes."""
    session.execute(_TOTAL, {"job_id": job.id})


def online_outcome(session: Session, job_id: int) -> OutcomeRow | None:
    return session.scalar(select(OutcomeRow).where(OutcomeRow.job_id == job_id, OutcomeRow.index == 0))


UNFINISHED_CODES = {JobState.EXPIRED: "batch_expired", JobState.CANCELLED: "batch_cancelled"}
