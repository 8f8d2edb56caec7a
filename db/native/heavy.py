"""Jobs that are no inference, as rows: one chunk of one request (what is to be done) whose outcome is the result. So a
worker leases them, is fenced off, and gives them back like every other chunk; only the way to a worker differs: not by
the queue of a model, but by that of a node which serves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from core.errors import NotFound
from core.job import JobState
from core.openai.answer import error_body
from db import chunks, jobs, results
from db.chunks import Lease, Outcome, WriteResult
from db.native import submission
from db.native.submission import NewJob
from db.tables import ArtifactRow, ChunkRow, HeavyJobRow, JobRow, RequestRow


@dataclass(frozen=True, slots=True)
class Claimant:
    """models: those of its node."""

    owner: str
    node: str
    device: str
    models: tuple[str, ...]
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """num_attempts: this one and those before that were not just handed back."""

    lease: Lease
    kind: str
    parameters: str
    num_attempts: int


@dataclass(frozen=True, slots=True)
class HeavyProgress:
    fraction: float
    message: str
    node: str | None
    device: str | None


_CLAIM = """
WITH best AS (
    SELECT c.id FROM chunks c JOIN heavy_jobs h ON h.job_id = c.job_id
    WHERE c.state = 'waiting' AND c.service_class = 'heavy' AND c.model = ANY(:models)
      AND (h.node IS NULL OR h.node = :node)
      AND NOT EXISTS (SELECT FROM pauses p WHERE p.service_class IN ('*', 'heavy') AND p.model IN ('*', c.model))
    ORDER BY c.priority DESC, c.id LIMIT 1 FOR UPDATE OF c SKIP LOCKED
), placed AS (
    UPDATE heavy_jobs SET device = :device, fraction = 0, message = 'started'
    FROM chunks, best WHERE chunks.id = best.id AND heavy_jobs.job_id = chunks.job_id
)
UPDATE chunks c SET state = 'running', owner = :owner, attempt = attempt + 1,
    lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
FROM best, jobs, requests r
WHERE c.id = best.id AND jobs.id = c.job_id AND r.job_id = c.job_id AND r.index = 0
RETURNING {lease}, jobs.kind, r.body,
    c.attempt - c.num_handed_back AS num_attempts
"""
_CLAIM_STATEMENT = text(_CLAIM.format(lease=chunks.LEASE_COLUMNS))

_WAITING = text("""
SELECT DISTINCT p.node, jobs.public_id
FROM chunks c JOIN heavy_jobs h ON h.job_id = c.job_id JOIN jobs ON jobs.id = c.job_id
JOIN placements p ON p.model = c.model AND (h.node IS NULL OR h.node = p.node)
WHERE c.state = 'waiting' AND c.service_class = 'heavy' AND CASE WHEN CAST(:job AS text) IS NULL
    THEN NOT EXISTS (SELECT FROM pauses s WHERE s.service_class IN ('*', 'heavy') AND s.model IN ('*', c.model))
    ELSE jobs.public_id = :job END
ORDER BY 1, 2 LIMIT 256
""")


def create(session: Session, new: NewJob, *, node: str | None, parameters: str) -> JobRow:
    """A job that waits for a node. parameters: JSON. Raises NotFound when no node serves its model, or not this one."""
    job = submission.create(session, new)
    assert new.model is not None
    session.add(RequestRow(job_id=job.id, index=0, custom_id=job.public_id, body=parameters))
    session.add(HeavyJobRow(job_id=job.id, node=node))
    session.add(
        ChunkRow(
            job_id=job.id,
            index=0,
            first_request=0,
            num_requests=1,
            model=new.model,
            service_class=new.service_class.value,
            tenant=new.tenant,
            priority=new.priority,
            state="waiting",
        )
    )
    jobs.move(session, job.id, JobState.IN_PROGRESS, {"num_requests": 1})
    session.flush()
    if not waiting(session, job.public_id):
        where = f" by node {node!r}" if node else ""
        raise NotFound(f"model {new.model!r} is not served here{where}; GET /api/v1/nodes lists what is", param="model")
    session.refresh(job)
    return job


def claim(session: Session, by: Claimant) -> Claimed | None:
    """The best waiting job for this node; None when nothing waits, or all is paused."""
    values = {
        "owner": by.owner,
        "node": by.node,
        "device": f"{by.device}@{by.node}",
        "models": list(by.models),
        "lease_seconds": by.lease_seconds,
    }
    row = session.execute(_CLAIM_STATEMENT, values).one_or_none()
    if row is None:
        return None
    return Claimed(chunks.lease_of(row._mapping, by.lease_seconds), row.kind, row.body, row.num_attempts)


def waiting(session: Session, job: str | None = None) -> list[tuple[str, str]]:
    """(node, job) of what waits and may run there: of one job, or of all that are not paused."""
    return [(row[0], row[1]) for row in session.execute(_WAITING, {"job": job})]


def report(session: Session, lease: Lease, fraction: float, message: str) -> WriteResult:
    """Says how far it is and renews the lease. Raises LeaseLost."""
    result = chunks.write(session, lease)
    values = {"fraction": fraction, "message": message}
    session.execute(update(HeavyJobRow).where(HeavyJobRow.job_id == lease.job_id).values(**values))
    return result


def succeed(session: Session, lease: Lease, result: str, artifact: ArtifactRow | None = None) -> bool:
    """Ends a job with its result (JSON) and the artifact that it made, all in one transaction. False when it is being
    stopped: it keeps the result, and ends as its stop says. Raises LeaseLost."""
    if artifact is not None:
        session.merge(artifact)
    if _conclude(session, lease, Outcome(0, 200, result)):
        return False
    jobs.move(session, lease.job_id, JobState.FINALIZING)
    return jobs.move(session, lease.job_id, JobState.COMPLETED)


def fail(session: Session, lease: Lease, code: str, message: str) -> bool:
    """Ends a job without a result. False when it is being stopped. Raises LeaseLost."""
    body = msgspec.json.encode(error_body(code, message, kind="server_error")).decode()
    if _conclude(session, lease, Outcome(0, 500, body)):
        return False
    errors = {"object": "list", "data": [{"code": code, "message": message, "line": None, "param": None}]}
    return jobs.move(session, lease.job_id, JobState.FAILED, {"errors": errors})


def _conclude(session: Session, lease: Lease, outcome: Outcome) -> bool:
    """Writes and counts the outcome. True when the job is being stopped."""
    is_stopping = chunks.write(session, lease, [outcome]).is_stopping
    results.total(session, session.get_one(JobRow, lease.job_id))
    return is_stopping


def progress(session: Session, job_ids: Sequence[int]) -> dict[int, HeavyProgress]:
    """Of those among these jobs that are no inference."""
    rows = session.scalars(select(HeavyJobRow).where(HeavyJobRow.job_id.in_(job_ids)))
    return {row.job_id: HeavyProgress(row.fraction, row.message, row.node, row.device) for row in rows}
