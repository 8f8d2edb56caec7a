"""Outcomes out: the answer to an online request, and the lines of a job's output and error files."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from core.job import JobState
from db.connection import Database, driver
from db.tables import JobRow, OutcomeRow

PAGE_ROWS = 64

# One line of an output or error file, as OpenAI writes it. Built where the rows are: to take them out, parse and write
# them anew would cost as much as running them. Bodies hold no line break: every one is written by our own encoder.
LINE = """
    '{"id":"' || %(prefix)s || o.index || '","custom_id":' || to_json(r.custom_id)
    || CASE WHEN o.status_code IS NULL THEN ',"response":null,"error":' || o.body
       ELSE ',"response":{"status_code":' || o.status_code || ',"request_id":"' || %(prefix)s || o.index
            || '","body":' || o.body || '},"error":null' END
    || E'}\\n'
"""

# A page at a time bounds the server's memory.
_LINES = f"""
SELECT page.lines FROM generate_series(0, %(num_requests)s - 1, %(page_rows)s) AS first
CROSS JOIN LATERAL (
    SELECT convert_to(string_agg({LINE}, '' ORDER BY o.index), 'UTF8') AS lines
    FROM outcomes o JOIN requests r ON r.job_id = o.job_id AND r.index = o.index
    WHERE o.job_id = %(job_id)s AND o.index >= first AND o.index < first + %(page_rows)s
      AND r.job_id = %(job_id)s AND r.index >= first AND r.index < first + %(page_rows)s
      AND (o.status_code IS NOT DISTINCT FROM 200) = %(is_success)s
) AS page
WHERE page.lines IS NOT NULL
"""  # noqa: S608  # of constants


@dataclass(frozen=True, slots=True)
class Totals:
    num_completed: int
    num_failed: int


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
WHERE id = :job_id RETURNING num_completed, num_failed
""")


def line_prefix(job: JobRow) -> str:
    """What the ids of its lines begin with: the parameter of `LINE`."""
    return f"batch_req_{job.public_id.removeprefix('batch_')}_"


def lines(database: Database, job: JobRow, *, is_success: bool) -> Iterator[bytes]:
    """The lines of an output or an error file as OpenAI writes them, in order of the requests: blocks of whole lines,
    streamed, so that memory stays flat whatever the answers are."""
    values = {
        "job_id": job.id,
        "num_requests": job.num_requests,
        "page_rows": PAGE_ROWS,
        "prefix": line_prefix(job),
        "is_success": is_success,
    }
    with (
        database.begin() as session,
        driver(session).cursor() as cursor,
        cursor.copy(f"COPY ({_LINES}) TO STDOUT (FORMAT binary)", values) as copy,
    ):
        copy.set_types(["bytea"])
        for (block,) in copy.rows():
            yield block


def close_unfinished(session: Session, job: JobRow, body: str) -> None:
    """Gives every request without an outcome the outcome that it never ran; `body`: JSON of `{code, message}`."""
    session.execute(_CLOSE, {"job_id": job.id, "body": body})


def total(session: Session, job: JobRow) -> Totals:
    """Makes the job's counters exact from its outcomes."""
    return Totals(*session.execute(_TOTAL, {"job_id": job.id}).one())


def online_outcome(session: Session, job_id: int) -> OutcomeRow | None:
    return session.scalar(select(OutcomeRow).where(OutcomeRow.job_id == job_id, OutcomeRow.index == 0))


UNFINISHED_CODES = {JobState.EXPIRED: "batch_expired", JobState.CANCELLED: "batch_cancelled"}
