"""Removes jobs that ended long ago, with all their rows. A step deletes at most `STEP_ROWS` requests with their
outcomes, and the row of the job goes last, so that the next run takes up what one has left. Files are not of a job:
they have an expiry of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from core.job import TERMINAL_JOB_STATES, ServiceClass

STEP_ROWS = 5000
PAGE_JOBS = 500
STEP_LOCK = 0x726D << 32  # "rm"

# Responses that are stored are online jobs, but somebody may come for them as late as for a batch.
_ENDED = text("""
SELECT id, num_requests FROM jobs
WHERE service_class = :service_class AND created_at < now() - :age AND state = ANY(:ended)
  AND coalesce(completed_at, failed_at, expired_at, cancelled_at) < now() - :age
  AND (:takes_responses OR NOT EXISTS (SELECT FROM responses r WHERE r.job_id = jobs.id AND r.is_stored))
ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED
""")

_BY_REQUEST = ("outcomes", "retries", "requests")


@dataclass(frozen=True, slots=True)
class EndedJob:
    id: int
    num_requests: int


def ended(session: Session, service_class: ServiceClass, age: timedelta, *, takes_responses: bool) -> list[EndedJob]:
    """The oldest that ended longer ago than `age`; those that another transaction holds are left out."""
    values = {
        "service_class": service_class.value,
        "age": age,
        "ended": sorted(TERMINAL_JOB_STATES),
        "takes_responses": takes_responses,
        "limit": PAGE_JOBS,
    }
    return [EndedJob(*row) for row in session.execute(_ENDED, values)]


def steps(found: Sequence[EndedJob]) -> list[list[EndedJob]]:
    """Groups with at most STEP_ROWS requests together; a larger job is alone."""
    groups: list[list[EndedJob]] = []
    room = -1
    for job in found:
        if job.num_requests > room:
            groups.append([])
            room = STEP_ROWS
        groups[-1].append(job)
        room -= job.num_requests
    return groups


def _one_at_a_time(session: Session) -> None:
    """Two that delete the same rows in different orders would wait for each other for ever."""
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": STEP_LOCK})


def thin(session: Session, job: EndedJob, first: int) -> None:
    """Deletes the rows of STEP_ROWS requests, beginning with the one at index `first`."""
    _one_at_a_time(session)
    for table in _BY_REQUEST:
        session.execute(
            text(f"DELETE FROM {table} WHERE job_id = :id AND index >= :first AND index < :end"),  # noqa: S608
            {"id": job.id, "first": first, "end": first + STEP_ROWS},
        )


def remove(session: Session, group: Sequence[EndedJob]) -> None:
    """The jobs themselves and whatever rows they have left."""
    _one_at_a_time(session)
    ids = [job.id for job in group]
    for table in (*_BY_REQUEST, "chunks"):
        session.execute(text(f"DELETE FROM {table} WHERE job_id = ANY(:ids)"), {"ids": ids})  # noqa: S608
    session.execute(text("DELETE FROM jobs WHERE id = ANY(:ids)"), {"ids": ids})
