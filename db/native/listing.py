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


@dataclass(frozen=True, slots=True)
class ResultPage:
    """next_after: what `after` must be for the next page; None where this is the last."""

    lines: list[str]
    next_after: int | None


# The lengths are known without reading the bodies; one more than `limit` tells whether there is another page.
_RESULTS = f"""
WITH page AS (
    SELECT o.index, sum(octet_length(o.body)) OVER (ORDER BY o.index) - octet_length(o.body) AS num_bytes_before
    FROM outcomes o WHERE o.job_id = %(job_id)s AND o.index > %(after)s
    ORDER BY o.index LIMIT %(limit)s + 1
)
SELECT o.index, {LINE}, (SELECT count(*) FROM page)
FROM page JOIN outcomes o ON o.job_id = %(job_id)s AND o.index = page.index
JOIN requests r ON r.job_id = o.job_id AND r.index = o.index
WHERE page.num_bytes_before < %(max_bytes)s
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


def results(session: Session, job: JobRow, *, after: int, limit: int, max_bytes: int) -> ResultPage:
    """Of the outcomes above `after`, in order of the requests; those that are there by now. A page ends with the line
    that brings its bodies to `max_bytes`."""
    values = {
        "job_id": job.id,
        "prefix": line_prefix(job),
        "after": after,
        "limit": limit,
        "max_bytes": max_bytes,
    }
    with driver(session).cursor() as cursor:
        rows = cursor.execute(_RESULTS, values).fetchall()
    has_more = bool(rows) and rows[0][2] > len(rows)
    return ResultPage([row[1] for row in rows], next_after=rows[-1][0] if has_more else None)


def only_request(session: Session, job: JobRow) -> str | None:
    """The body of request 0: what a job that is no inference is to do."""
    return session.scalar(select(RequestRow.body).where(RequestRow.job_id == job.id, RequestRow.index == 0))


def only_outcome(session: Session, job: JobRow) -> OutcomeRow | None:
    return session.scalar(select(OutcomeRow).where(OutcomeRow.job_id == job.id, OutcomeRow.index == 0))
