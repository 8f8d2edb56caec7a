"""Writing under a lease: outcomes, retries and renewals in one fenced transaction, and giving a chunk back."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.orm import Session

from core.job import ChunkState, ServiceClass
from db import shares
from db.chunks.lease import Crash, Lease, Outcome, Request, Retry, WriteResult
from db.connection import Statement

MOST_DELAYED = 1000

_UNFINISHED = Statement("""
SELECT r.index, r.body FROM requests r
WHERE r.job_id = :job_id AND r.index >= :first AND r.index < CAST(:first AS int) + :count
  AND NOT EXISTS (SELECT FROM outcomes o WHERE o.job_id = r.job_id AND o.index = r.index
                  AND o.job_id = :job_id AND o.index >= :first AND o.index < CAST(:first AS int) + :count)
ORDER BY r.index
""")

_RETRIES = text("""
SELECT index, num_attempts, retry_at > clock_timestamp() FROM retries
WHERE job_id = :job_id AND index >= :first AND index < CAST(:first AS int) + :count
""")

# A chunk that ends has its job looked at, should nobody be left to say that it has ended: `db.upkeep.looks`. The job of
# what people wait for ends with its chunk.
_FENCE = Statement("""
UPDATE chunks AS c SET
    num_completed = c.num_completed + :num_completed,
    num_failed = c.num_failed + :num_failed,
    prompt_tokens = c.prompt_tokens + :prompt_tokens,
    completion_tokens = c.completion_tokens + :completion_tokens,
    cached_tokens = c.cached_tokens + :cached_tokens,
    state = CASE WHEN c.num_completed + c.num_failed + :num_completed + :num_failed >= c.num_requests
        THEN 'done' ELSE c.state END,
    look_at = CASE WHEN c.num_completed + c.num_failed + :num_completed + :num_failed >= c.num_requests
        AND c.service_class <> 'online' THEN clock_timestamp() + interval '2 seconds' END,
    lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
FROM jobs
WHERE c.id = :chunk_id AND c.owner = :owner AND c.attempt = :attempt AND c.state = 'running'
  AND jobs.id = c.job_id
RETURNING c.state, jobs.state = 'cancelling' OR jobs.ending IS NOT NULL
""")

# One JSON document instead of arrays for `unnest`: psycopg writes arrays item by item in Python, eight times as slow.
# What the rows that are really new used is noted with them: `db.access.usage`.
_APPEND = Statement("""
WITH inserted AS (
    INSERT INTO outcomes (job_id, attempt, index, status_code, body, prompt_tokens, completion_tokens, cached_tokens,
        queue_seconds, first_token_seconds, total_seconds, device_seconds)
    SELECT :job_id, :attempt, row.* FROM json_to_recordset(CAST(:outcomes AS json)) AS row(
        index int, status_code smallint, body text, prompt_tokens int, completion_tokens int, cached_tokens int,
        queue_seconds real, first_token_seconds real, total_seconds real, device_seconds real)
    ON CONFLICT DO NOTHING
    RETURNING status_code, prompt_tokens, completion_tokens, cached_tokens, device_seconds
), seen AS (
    SELECT count(*) AS num_requests, count(*) FILTER (WHERE status_code <> 200) AS num_failed,
        coalesce(sum(prompt_tokens), 0) AS prompt_tokens, coalesce(sum(cached_tokens), 0) AS cached_tokens,
        coalesce(sum(completion_tokens), 0) AS completion_tokens, coalesce(sum(device_seconds), 0) AS device_seconds
    FROM inserted
), noted AS (
    INSERT INTO usage_entries (tenant, key_id, model, service_class, num_requests, num_failed, prompt_tokens,
        cached_tokens, completion_tokens, device_seconds)
    SELECT jobs.tenant, coalesce(jobs.key_id, 0), jobs.model, jobs.service_class, seen.* FROM seen, jobs
    WHERE jobs.id = :job_id AND jobs.kind = 'inference' AND jobs.model IS NOT NULL AND seen.num_requests > 0
)
SELECT num_requests FROM seen
""")

_NOTE_RETRIES = text("""
INSERT INTO retries (job_id, index, num_attempts, code, message, retry_at)
SELECT :job_id, row.index, row.num_attempts, row.code, row.message,
    clock_timestamp() + make_interval(secs => row.delay_seconds)
FROM json_to_recordset(CAST(:retries AS json)) AS row(index int, num_attempts int, code text, message text,
    delay_seconds double precision)
ON CONFLICT (job_id, index) DO UPDATE SET num_attempts = excluded.num_attempts, code = excluded.code,
    message = excluded.message, retry_at = excluded.retry_at
""")

_RECOUNT = text("""
UPDATE chunks SET num_completed = seen.completed, num_failed = seen.failed, prompt_tokens = seen.prompt,
    completion_tokens = seen.completion, cached_tokens = seen.cached,
    state = CASE WHEN seen.completed + seen.failed >= num_requests THEN 'done' ELSE 'running' END,
    look_at = CASE WHEN seen.completed + seen.failed >= num_requests THEN look_at END
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
    crash_width = :crash_width, num_handed_back = c.num_handed_back + :num_handed_back,
    state = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL THEN 'cancelled' ELSE 'waiting' END,
    look_at = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL
        THEN clock_timestamp() + interval '2 seconds' END
FROM jobs
WHERE c.id = :chunk_id AND c.owner = :owner AND c.attempt = :attempt AND c.state = 'running'
  AND jobs.id = c.job_id
RETURNING c.state
""")

_DELAY = text("""
UPDATE chunks AS c SET owner = NULL, lease_until = NULL, num_handed_back = c.num_handed_back + 1,
    state = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL THEN 'cancelled' ELSE 'waiting' END,
    look_at = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL
        THEN clock_timestamp() + interval '2 seconds' END,
    available_at = (SELECT coalesce(min(retry_at), clock_timestamp()) FROM retries
        WHERE retries.job_id = c.job_id AND retries.index >= c.first_request
          AND retries.index < c.first_request + c.num_requests
          AND NOT EXISTS (SELECT FROM outcomes o WHERE o.job_id = retries.job_id AND o.index = retries.index))
FROM jobs
WHERE c.id = :chunk_id AND c.owner = :owner AND c.attempt = :attempt AND c.state = 'running'
  AND jobs.id = c.job_id
RETURNING c.state
""")

_WAKE_DELAYED = text("""
WITH due AS (
    SELECT id FROM chunks WHERE state = 'waiting' AND available_at <= statement_timestamp()
    ORDER BY available_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE chunks SET available_at = NULL,
    state = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL THEN 'cancelled' ELSE 'waiting' END,
    look_at = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL THEN clock_timestamp() END
FROM due, jobs WHERE chunks.id = due.id AND jobs.id = chunks.job_id
RETURNING chunks.id, chunks.state
""")

# Only what was claimed before was charged.
_CANCEL_WAITING = text("""
WITH cancelled AS (
    UPDATE chunks SET state = 'cancelled' WHERE job_id = ANY(:jobs) AND state = 'waiting' RETURNING id, attempt
)
SELECT id FROM cancelled WHERE attempt > 0
""")


def unfinished(session: Session, lease: Lease) -> list[Request]:
    """The requests of the chunk that have no outcome yet and need not wait for another try, in order."""
    rows = _UNFINISHED.execute(session, _range(lease)).fetchall()
    if lease.service_class == ServiceClass.ONLINE:  # whoever waits is told of a failure at once
        return [Request(index, body.encode()) for index, body in rows]
    retries = {row[0]: (row[1], row[2]) for row in session.execute(_RETRIES, _range(lease))}
    if not retries:
        return [Request(index, body.encode()) for index, body in rows]
    known = ((index, body, *retries.get(index, (0, False))) for index, body in rows)
    return [Request(index, body.encode(), attempts) for index, body, attempts, must_wait in known if not must_wait]


def write(
    session: Session, lease: Lease, outcomes: Sequence[Outcome] = (), retries: Sequence[Retry] = ()
) -> WriteResult:
    """Appends outcomes, counts them and renews the lease; without outcomes it only renews. An outcome that is already
    there stays as it is. Notes the requests that are tried again. Raises LeaseLost when the chunk has another owner or
    attempt by now."""
    row = _FENCE.execute(session, _fence_values(lease, outcomes)).fetchone()
    if row is None:
        raise lease.lost()
    state, is_stopping = row
    if retries:
        document = msgspec.json.encode(retries).decode()
        session.execute(_NOTE_RETRIES, {"job_id": lease.job_id, "retries": document})
    if outcomes:
        state = _append(session, lease, outcomes, state)
    if state == ChunkState.DONE and lease.service_class != ServiceClass.ONLINE:
        shares.settle(session, [lease.chunk_id])
    return WriteResult(state == ChunkState.DONE, bool(is_stopping))


def _append(session: Session, lease: Lease, outcomes: Sequence[Outcome], state: str) -> str:
    document = msgspec.json.encode(outcomes).decode()
    values = {"job_id": lease.job_id, "attempt": lease.attempt, "outcomes": document}
    if _APPEND.execute(session, values).fetchone() == (len(outcomes),):
        return state
    return str(session.execute(_RECOUNT, {"chunk_id": lease.chunk_id, **_range(lease)}).scalar_one())


def hand_back(session: Session, lease: Lease, crash: Crash | None = None, *, crash_width: int | None = None) -> None:
    """Returns the chunk to the waiting ones (or cancels it with its job). crash_width: how many requests are still
    suspected of an earlier crash. Raises LeaseLost."""
    values = {
        **_token(lease),
        "num_crashes": int(crash is not None),
        "num_handed_back": int(crash is None),
        "suspect": crash.suspect_request if crash else None,
        "crash_width": crash.width if crash else crash_width,
    }
    _give_up(session, lease, session.execute(_HAND_BACK, values).scalar_one_or_none())


def delay(session: Session, lease: Lease) -> None:
    """Puts the chunk aside until the first of its requests that are to be tried again is due. Raises LeaseLost."""
    _give_up(session, lease, session.execute(_DELAY, _token(lease)).scalar_one_or_none())


def _give_up(session: Session, lease: Lease, state: str | None) -> None:
    """state: what became of the chunk, None where it is somebody else's."""
    if state is None:
        raise lease.lost()
    if state == ChunkState.CANCELLED and lease.service_class != ServiceClass.ONLINE:
        shares.settle(session, [lease.chunk_id])


def wake_delayed(session: Session, *, limit: int = MOST_DELAYED) -> int:
    """Makes delayed chunks that are due claimable again, and says how many they were."""
    rows = session.execute(_WAKE_DELAYED, {"limit": limit}).all()
    shares.settle(session, [row.id for row in rows if row.state == ChunkState.CANCELLED])
    return len(rows)


def cancel_waiting(session: Session, job_ids: Sequence[int]) -> None:
    """Of jobs that are being stopped: the chunks that nobody runs."""
    if job_ids:
        shares.settle(session, session.scalars(_CANCEL_WAITING, {"jobs": list(job_ids)}).all())


def _range(lease: Lease) -> dict[str, int]:
    return {"job_id": lease.job_id, "first": lease.first_request, "count": lease.num_requests}


def _token(lease: Lease) -> dict[str, Any]:
    return {"chunk_id": lease.chunk_id, "owner": lease.owner, "attempt": lease.attempt}


def _fence_values(lease: Lease, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    num_completed = sum(outcome.status_code == 200 for outcome in outcomes)
    return {
        **_token(lease),
        "lease_seconds": lease.lease_seconds,
        "num_completed": num_completed,
        "num_failed": len(outcomes) - num_completed,
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in outcomes),
        "completion_tokens": sum(outcome.completion_tokens for outcome in outcomes),
        "cached_tokens": sum(outcome.cached_tokens for outcome in outcomes),
    }
