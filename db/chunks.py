"""Chunks: claiming them under a lease, writing outcomes under its fencing token, giving them back.

Every write of a worker begins with an `UPDATE chunks … WHERE id, owner and attempt match`, which holds that row to the
commit: a worker whose lease was taken finds no row, raises LeaseLost and has written nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.orm import Session

from core.errors import LeaseLost
from core.job import ChunkState


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed chunk: what to run and the token (owner, attempt) under which its outcomes are accepted."""

    chunk_id: int
    owner: str
    attempt: int
    job_id: int
    job_public_id: str
    tenant: str
    chunk_index: int
    first_request: int
    num_requests: int
    model: str
    endpoint: str
    num_crashes: int
    suspect_request: int | None
    suspect_crashes: int
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Request:
    index: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """status_code 200 with a response body, another with OpenAI's error object; seconds are the engine's."""

    index: int
    status_code: int
    body: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Crash:
    """The engine died while requests of the chunk were running; `suspect_request` if it was only this one."""

    suspect_request: int | None


@dataclass(frozen=True, slots=True)
class WriteResult:
    """is_done: every request of the chunk has its outcome. is_stopping: the job is being cancelled or has expired."""

    is_done: bool
    is_stopping: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """names: `<job>#<chunk index>` of the best waiting chunks, best first."""

    service_class: str
    model: str
    names: list[str]


# One row is locked, the best that nobody else is claiming: locking one per model would take it from other claimers.
_CLAIM = text("""
WITH candidates AS (
    SELECT candidate.id
    FROM unnest(CAST(:models AS text[])) AS wanted(model)
    CROSS JOIN LATERAL (
        SELECT id FROM chunks
        WHERE state = 'waiting' AND service_class = :service_class AND model = wanted.model
        ORDER BY priority DESC, id LIMIT 64
    ) AS candidate
), best AS (
    SELECT id FROM chunks WHERE id IN (SELECT id FROM candidates) AND state = 'waiting'
    ORDER BY priority DESC, id LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE chunks SET state = 'running', owner = :owner, attempt = attempt + 1,
    lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
FROM best, jobs
WHERE chunks.id = best.id AND jobs.id = chunks.job_id
RETURNING chunks.id AS chunk_id, chunks.owner, chunks.attempt, chunks.job_id, jobs.public_id AS job_public_id,
    jobs.tenant, chunks.index AS chunk_index, chunks.first_request, chunks.num_requests, chunks.model, jobs.endpoint,
    chunks.num_crashes, chunks.suspect_request, chunks.suspect_crashes
""")

_UNFINISHED = text("""
SELECT r.index, r.body FROM requests r
WHERE r.job_id = :job_id AND r.index >= :first AND r.index < CAST(:first AS int) + :count
  AND NOT EXISTS (SELECT FROM outcomes o WHERE o.job_id = r.job_id AND o.index = r.index
                  AND o.job_id = :job_id AND o.index >= :first AND o.index < CAST(:first AS int) + :count)
ORDER BY r.index
""")

_FENCE = text("""
UPDATE chunks AS c SET
    num_completed = c.num_completed + :num_completed,
    num_failed = c.num_failed + :num_failed,
    prompt_tokens = c.prompt_tokens + :prompt_tokens,
    completion_tokens = c.completion_tokens + :completion_tokens,
    cached_tokens = c.cached_tokens + :cached_tokens,
    state = CASE WHEN c.num_completed + c.num_failed + :num_completed + :num_failed >= c.num_requests
        THEN 'done' ELSE c.state END,
    lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
FROM jobs
WHERE c.id = :chunk_id AND c.owner = :owner AND c.attempt = :attempt AND c.state = 'running'
  AND jobs.id = c.job_id
RETURNING c.state, jobs.state = 'cancelling' OR jobs.ending IS NOT NULL
""")

# One JSON document instead of arrays for `unnest`: psycopg writes arrays item by item in Python, eight times as slow.
_APPEND = text("""
INSERT INTO outcomes (job_id, index, status_code, body, prompt_tokens, completion_tokens, cached_tokens,
    queue_seconds, first_token_seconds, total_seconds)
SELECT :job_id, row.* FROM json_to_recordset(CAST(:outcomes AS json)) AS row(index int, status_code smallint, body text,
    prompt_tokens int, completion_tokens int, cached_tokens int,
    queue_seconds real, first_token_seconds real, total_seconds real)
ON CONFLICT DO NOTHING
""")

_RECOUNT = text("""
UPDATE chunks SET num_completed = seen.completed, num_failed = seen.failed, prompt_tokens = seen.prompt,
    completion_tokens = seen.completion, cached_tokens = seen.cached,
    state = CASE WHEN seen.completed + seen.failed >= num_requests THEN 'done' ELSE 'running' END
FROM (SELECT count(*) FILTER (WHERE status_code = 200) AS completed,
             count(*) FILTER (WHERE status_code IS DISTINCT FROM 200) AS failed,
             coalesce(sum(prompt_tokens), 0) AS prompt, coalesce(sum(completion_tokens), 0) AS completion,
             coalesce(sum(cached_tokens), 0) AS cached
      FROM outcomes WHERE job_id = :job_id AND index >= :first AND index < CAST(:first AS int) + :count) AS seen
WHERE id = :chunk_id RETURNING state
""")

_HAND_BACK = text("""
UPDATE chunks AS c SET owner = NULL, lease_until = NULL, num_crashes = c.num_crashes + :num_crashes,
    suspect_crashes = CASE WHEN CAST(:suspect AS int) IS NULL THEN c.suspect_crashes
        WHEN c.suspect_request = CAST(:suspect AS int) THEN c.suspect_crashes + 1 ELSE 1 END,
    suspect_request = coalesce(CAST(:suspect AS int), c.suspect_request),
    num_handed_back = c.num_handed_back + :num_handed_back,
    state = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL THEN 'cancelled' ELSE 'waiting' END
FROM jobs
WHERE c.id = :chunk_id AND c.owner = :owner AND c.attempt = :attempt AND c.state = 'running'
  AND jobs.id = c.job_id
RETURNING c.id
""")

_EXPIRE = text("""
WITH expired AS (
    SELECT id FROM chunks WHERE state = 'running' AND lease_until < clock_timestamp() FOR UPDATE SKIP LOCKED
)
UPDATE chunks SET owner = NULL, lease_until = NULL,
    state = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL THEN 'cancelled' ELSE 'waiting' END
FROM expired, jobs WHERE chunks.id = expired.id AND jobs.id = chunks.job_id
RETURNING chunks.id, jobs.public_id, chunks.index, chunks.attempt
""")

_BACKLOG = text("""
SELECT wanted.service_class, wanted.model, waiting.names
FROM (SELECT DISTINCT c.service_class, p.model
      FROM placements p CROSS JOIN (VALUES ('online'), ('batch')) AS c(service_class)) AS wanted
CROSS JOIN LATERAL (
    SELECT array_agg(best.name) AS names FROM (
        SELECT jobs.public_id || '#' || chunks.index AS name
        FROM chunks JOIN jobs ON jobs.id = chunks.job_id
        WHERE chunks.state = 'waiting' AND chunks.service_class = wanted.service_class
          AND chunks.model = wanted.model
        ORDER BY chunks.priority DESC, chunks.id LIMIT :window) AS best) AS waiting
WHERE waiting.names IS NOT NULL
""")


_CANCEL_STOPPED = text("""
UPDATE chunks SET state = 'cancelled' FROM jobs
WHERE jobs.id = chunks.job_id AND chunks.state = 'waiting'
  AND (jobs.state = 'cancelling' OR (jobs.state = 'in_progress' AND jobs.ending IS NOT NULL))
RETURNING chunks.id
""")


def claim(
    session: Session, *, owner: str, service_class: str, models: Sequence[str], lease_seconds: float
) -> Lease | None:
    """The best waiting chunk among these models (priority, then age), leased to `owner`; None when nothing waits."""
    row = session.execute(
        _CLAIM,
        {"owner": owner, "service_class": service_class, "models": list(models), "lease_seconds": lease_seconds},
    ).one_or_none()
    if row is None:
        return None
    return Lease(**row._mapping, lease_seconds=lease_seconds)


def unfinished(session: Session, lease: Lease) -> list[Request]:
    """The requests of the chunk that have no outcome yet, in order."""
    rows = session.execute(_UNFINISHED, _range(lease))
    return [Request(index, body.encode()) for index, body in rows]


def write(session: Session, lease: Lease, outcomes: Sequence[Outcome] = ()) -> WriteResult:
    """Appends outcomes, counts them and renews the lease; without outcomes it only renews. An outcome that is already
    there stays as it is. Raises LeaseLost when the chunk has another owner or attempt by now."""
    row = session.execute(_FENCE, _fence_values(lease, outcomes)).one_or_none()
    if row is None:
        raise LeaseLost(_lost(lease))
    state, is_stopping = row
    if outcomes:
        document = msgspec.json.encode(outcomes).decode()
        inserted = session.execute(_APPEND, {"job_id": lease.job_id, "outcomes": document})
        if inserted.rowcount != len(outcomes):  # type: ignore[attr-defined]
            state = session.execute(_RECOUNT, {"chunk_id": lease.chunk_id, **_range(lease)}).scalar_one()
    return WriteResult(state == ChunkState.DONE, bool(is_stopping))


def hand_back(session: Session, lease: Lease, crash: Crash | None = None) -> None:
    """Returns the chunk to the waiting ones (or cancels it with its job). Raises LeaseLost."""
    values = {
        "chunk_id": lease.chunk_id,
        "owner": lease.owner,
        "attempt": lease.attempt,
        "num_crashes": int(crash is not None),
        "num_handed_back": int(crash is None),
        "suspect": crash.suspect_request if crash else None,
    }
    if session.execute(_HAND_BACK, values).one_or_none() is None:
        raise LeaseLost(_lost(lease))


def expire(session: Session) -> list[tuple[int, str, int, int]]:
    """Takes back every chunk whose lease has run out: (chunk id, job's public id, chunk index, attempt) of each."""
    return [(row[0], row[1], row[2], row[3]) for row in session.execute(_EXPIRE)]


def backlog(session: Session, *, window: int) -> list[Backlog]:
    """What waits for each placed model and class: its best chunks, `window` at most."""
    return [Backlog(*row) for row in session.execute(_BACKLOG, {"window": window})]


def cancel_stopped(session: Session) -> int:
    """Cancels waiting chunks of jobs that are being stopped: handed back while the stop was being committed."""
    return len(session.execute(_CANCEL_STOPPED).all())


def _range(lease: Lease) -> dict[str, int]:
    return {"job_id": lease.job_id, "first": lease.first_request, "count": lease.num_requests}


def _fence_values(lease: Lease, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    num_completed = sum(outcome.status_code == 200 for outcome in outcomes)
    return {
        "chunk_id": lease.chunk_id,
        "owner": lease.owner,
        "attempt": lease.attempt,
        "lease_seconds": lease.lease_seconds,
        "num_completed": num_completed,
        "num_failed": len(outcomes) - num_completed,
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in outcomes),
        "completion_tokens": sum(outcome.completion_tokens for outcome in outcomes),
        "cached_tokens": sum(outcome.cached_tokens for outcome in outcomes),
    }


def _lost(lease: Lease) -> str:
    return (
        f"chunk {lease.chunk_index} of {lease.job_public_id} is no longer leased to {lease.owner} (attempt "
        f"{lease.attempt}): the lease expired and somebody else runs it; nothing of this attempt is written any more"
    )
