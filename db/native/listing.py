"""Reading jobs for people: lists with filters, pages of results, and what a job that has one request came to."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.job import ServiceClass
from db import jobs
from db.connection import driver
from db.results import LINE, line_prefix
from db.tables import JobRow, OutcomeRow, RequestRow


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """None is all; `service_class` None is all but online requests, each of which is a job of its own."""

    kind: str | None = None
    state: str | None = None
    model: str | None = None
    service_class: str | None = None
    after: str | None = None
    limit: int


_RESULTS = f"""
SELECT o.index, {LINE}
FROM outcomes o JOIN requests r ON r.job_id = o.job_id AND r.index = o.index
WHERE o.job_id = %(job_id)s AND o.index > %(after)s
ORDER BY o.index LIMIT %(limit)s
"""  # noqa: S608  # of constants


def list_jobs(session: Session, wanted: JobFilter, *, tenant: str) -> Sequence[JobRow]:
    """Newest first. Raises NotFound for an unknown `after`, the id of the last job of the page before."""
    query = select(JobRow).where(JobRow.tenant == tenant)
    for column, value in ((JobRow.kind, wanted.kind), (JobRow.state, wanted.state), (JobRow.model, wanted.model)):
        if value is not None:
            query = query.where(column == value)
    if wanted.service_class is not None:
        query = query.where(JobRow.service_class == wanted.service_class)
    else:
        query = query.where(JobRow.service_class != ServiceClass.ONLINE.value)
    if wanted.after is not None:
        query = query.where(JobRow.id < jobs.find(session, wanted.after, tenant=tenant).id)
    return session.scalars(query.order_by(JobRow.id.desc()).limit(wanted.limit)).all()


def results(session: Session, job: JobRow, *, after: int, limit: int) -> list[tuple[int, str]]:
    """Index and line of the outcomes above `after`, in order of the requests; those that are there by now."""
    values = {"job_id": job.id, "prefix": line_prefix(job), "after": after, "limit": limit}
    with driver(session).cursor() as cursor:
        return [(row[0], row[1]) for row in cursor.execute(_RESULTS, values)]


def only_request(session: Session, job: JobRow) -> str | None:
    """The body of request 0: what a job that is no inference is to do."""
    return session.scalar(select(RequestRow.body).where(RequestRow.job_id == job.id, RequestRow.index == 0))


def only_outcome(session: Session, job: JobRow) -> OutcomeRow | None:
    return session.scalar(select(OutcomeRow).where(OutcomeRow.job_id == job.id, OutcomeRow.index == 0))
