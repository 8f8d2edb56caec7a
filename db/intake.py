"""Requests in: `COPY` of validated rows and the chunks cut from them, in the caller's transaction; and who may do that
for a job, while its owner may still stop it or change its priority."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from core.chunks import Cut, Cutter
from core.job import JobState
from core.openai.batchfile import BatchRow
from db import shares
from db.connection import driver
from db.tables import JobRow

VALIDATING_LOCK = 0x76616C << 32  # above every job id

_COPY = "COPY requests (job_id, index, custom_id, body) FROM STDIN"

_CUT = text("""
INSERT INTO chunks (job_id, index, first_request, num_requests, cost_tokens, model, service_class, tenant, priority,
    state)
SELECT :job_id, cut.ordinality - 1, cut.first_request, cut.num_requests, cut.cost_tokens, :model, :service_class,
    :tenant, :priority, 'waiting'
FROM ROWS FROM (json_to_recordset(CAST(:cuts AS json)) AS (first_request int, num_requests int, cost_tokens bigint))
    WITH ORDINALITY AS cut
""")


def begin_validating(session: Session, public_id: str) -> JobRow | None:
    """The job, which nobody else validates until this transaction is over, and which can be stopped and changed all the
    same. None when it is not validating, or somebody else does it."""
    query = select(JobRow).where(JobRow.public_id == public_id, JobRow.state == JobState.VALIDATING.value)
    # The weakest lock of the row goes with every change, but not with the lock of the whole row under which the release
    # before this one validates.
    job = session.scalar(query.with_for_update(read=True, key_share=True, skip_locked=True))
    if job is None or not session.scalar(select(func.pg_try_advisory_xact_lock(VALIDATING_LOCK + job.id))):
        return None
    session.refresh(job)
    return job if job.state == JobState.VALIDATING else None


def lock_validating(session: Session, public_id: str) -> JobRow | None:
    """The job as it is now, which stays so until this transaction is over; None when it is not validating any more."""
    query = select(JobRow).where(JobRow.public_id == public_id, JobRow.state == JobState.VALIDATING.value)
    return session.scalar(query.with_for_update(key_share=True).execution_options(populate_existing=True))


def is_validating(session: Session, job_id: int) -> bool:
    return session.scalar(select(JobRow.state).where(JobRow.id == job_id)) == JobState.VALIDATING


def copy_requests(session: Session, job_id: int, rows: Iterable[BatchRow], cutter: Cutter) -> int:
    """Streams the rows into `requests`, tells the cutter what they cost, and returns how many they were. What `rows`
    raises ends the copy and passes."""
    count = 0
    with driver(session).cursor() as cursor, cursor.copy(_COPY) as copy:
        for count, row in enumerate(rows, 1):
            copy.write_row((job_id, count - 1, row.custom_id, row.body))
            cutter.add(row.cost_tokens, len(row.body))
    return count


def add_chunks(session: Session, job: JobRow, model: str, cuts: Sequence[Cut]) -> None:
    """Makes the cuts of a job claimable, under the priority that it has now."""
    place: dict[str, Any] = {
        "service_class": job.service_class,
        "model": model,
        "priority": job.priority,
        "tenant": job.tenant,
    }
    shares.arrive(session, **place)
    session.execute(_CUT, {"job_id": job.id, "cuts": msgspec.json.encode(cuts).decode(), **place})
