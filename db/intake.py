"""Requests in: `COPY` of validated rows and the chunks cut from them, in the caller's transaction."""

from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.orm import Session

from core.openai.batchfile import BatchRow
from db.connection import driver
from db.tables import JobRow

_COPY = "COPY requests (job_id, index, custom_id, body) FROM STDIN"

_CUT = text(
    "INSERT INTO chunks (job_id, index, first_request, num_requests, model, service_class, priority, state)"
    " SELECT :job_id, n, n * :size, least(:size, :total - n * :size), :model, :service_class, :priority, 'waiting'"
    " FROM generate_series(0, (:total - 1) / :size) AS n"
)


def copy_requests(session: Session, job_id: int, rows: Iterable[BatchRow]) -> int:
    """Streams the rows into `requests` and returns how many they were. What `rows` raises ends the copy and passes."""
    count = 0
    with driver(session).cursor() as cursor, cursor.copy(_COPY) as copy:
        for count, row in enumerate(rows, 1):
            copy.write_row((job_id, count - 1, row.custom_id, row.body))
    return count


def cut_chunks(session: Session, job: JobRow, *, model: str, num_requests: int, chunk_rows: int) -> None:
    session.execute(
        _CUT,
        {
            "job_id": job.id,
            "size": chunk_rows,
            "total": num_requests,
            "model": model,
            "service_class": job.service_class,
            "priority": job.priority,
        },
    )
