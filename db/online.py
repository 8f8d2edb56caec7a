"""Online jobs while somebody waits for them: their end, and how long they go on for a client that left."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from core.job import JobState
from db.chunks import Lease, Outcome
from db.connection import Database, Statement
from db.tables import ChunkRow, JobRow, OutcomeRow, RequestRow

SUCCESS = 200
_SUMMED = ("prompt_tokens", "completion_tokens", "cached_tokens", "device_seconds")

# Through `finalizing`, as every job, but without a stop there.
_COMPLETE = Statement("""
UPDATE jobs SET state = 'completed', finalizing_at = now(), completed_at = now(), num_completed = seen.completed,
    num_failed = seen.failed, prompt_tokens = seen.prompt, completion_tokens = seen.completion,
    cached_tokens = seen.cached
FROM (SELECT count(*) FILTER (WHERE status_code = 200) AS completed,
             count(*) FILTER (WHERE status_code IS DISTINCT FROM 200) AS failed,
             coalesce(sum(prompt_tokens), 0) AS prompt, coalesce(sum(completion_tokens), 0) AS completion,
             coalesce(sum(cached_tokens), 0) AS cached
      FROM outcomes WHERE job_id = :job_id) AS seen
WHERE id = :job_id AND state = 'in_progress' AND ending IS NULL
  AND seen.completed + seen.failed >= jobs.num_requests
RETURNING id
""")


# Jobs whose every outcome is known at once, many in one statement: chunk, outcomes, job and usage of each, under its
# fencing token. In the order of the chunks' ids, as others who write several.
_END = Statement("""
WITH given AS (
    SELECT * FROM json_to_recordset(CAST(:ends AS json)) AS one(chunk_id bigint, job_id bigint, attempt int,
        num_completed int, num_failed int, prompt_tokens int, completion_tokens int, cached_tokens int,
        device_seconds real)
), held AS (
    SELECT chunks.id FROM given JOIN chunks ON chunks.id = given.chunk_id
    WHERE chunks.owner = :owner AND chunks.attempt = given.attempt AND chunks.state = 'running'
    ORDER BY chunks.id FOR UPDATE OF chunks
), fenced AS (
    UPDATE chunks AS c SET state = 'done', num_completed = given.num_completed, num_failed = given.num_failed,
        prompt_tokens = given.prompt_tokens, completion_tokens = given.completion_tokens,
        cached_tokens = given.cached_tokens
    FROM held, given WHERE c.id = held.id AND given.chunk_id = held.id
    RETURNING given.*
), inserted AS (
    INSERT INTO outcomes (job_id, attempt, index, status_code, body, prompt_tokens, completion_tokens, cached_tokens,
        queue_seconds, first_token_seconds, total_seconds, device_seconds)
    SELECT fenced.job_id, fenced.attempt, row.index, row.status_code, row.body, row.prompt_tokens,
        row.completion_tokens, row.cached_tokens, row.queue_seconds, row.first_token_seconds, row.total_seconds,
        row.device_seconds
    FROM json_to_recordset(CAST(:outcomes AS json)) AS row(job_id bigint, index int, status_code smallint, body text,
        prompt_tokens int, completion_tokens int, cached_tokens int, queue_seconds real, first_token_seconds real,
        total_seconds real, device_seconds real)
    JOIN fenced ON fenced.job_id = row.job_id
), completed AS (
    UPDATE jobs SET state = 'completed', finalizing_at = now(), completed_at = now(),
        num_completed = fenced.num_completed, num_failed = fenced.num_failed, prompt_tokens = fenced.prompt_tokens,
        completion_tokens = fenced.completion_tokens, cached_tokens = fenced.cached_tokens
    FROM fenced WHERE jobs.id = fenced.job_id AND jobs.state = 'in_progress' AND jobs.ending IS NULL
    RETURNING jobs.id
), noted AS (
    INSERT INTO usage_entries (tenant, key_id, model, service_class, num_requests, num_failed, prompt_tokens,
        cached_tokens, completion_tokens, device_seconds)
    SELECT jobs.tenant, coalesce(jobs.key_id, 0), jobs.model, jobs.service_class,
        sum(fenced.num_completed + fenced.num_failed), sum(fenced.num_failed), sum(fenced.prompt_tokens),
        sum(fenced.cached_tokens), sum(fenced.completion_tokens), sum(fenced.device_seconds)
    FROM fenced JOIN jobs ON jobs.id = fenced.job_id
    WHERE jobs.kind = 'inference' AND jobs.model IS NOT NULL
    GROUP BY jobs.tenant, coalesce(jobs.key_id, 0), jobs.model, jobs.service_class
)
SELECT fenced.chunk_id, completed.id IS NOT NULL AS is_completed
FROM fenced LEFT JOIN completed ON completed.id = fenced.job_id
""")


@dataclass(frozen=True, slots=True)
class WholeEnd:
    """Every outcome of a job of one chunk, made under the first lease of the chunk."""

    lease: Lease
    outcomes: Sequence[Outcome]

    def counts(self) -> dict[str, float]:
        num_completed = sum(outcome.status_code == SUCCESS for outcome in self.outcomes)
        return {
            "chunk_id": self.lease.chunk_id,
            "job_id": self.lease.job_id,
            "attempt": self.lease.attempt,
            "num_completed": num_completed,
            "num_failed": len(self.outcomes) - num_completed,
            **{name: sum(getattr(outcome, name) for outcome in self.outcomes) for name in _SUMMED},
        }


@dataclass(frozen=True, slots=True)
class OnlineEnd:
    """outcomes: of every request, in order. attempt: how often the job's one chunk was begun."""

    outcomes: list[OutcomeRow]
    attempt: int


def read_end(session: Session, job: JobRow) -> OnlineEnd | None:
    """None while an outcome is missing."""
    attempt = select(func.max(ChunkRow.attempt)).where(ChunkRow.job_id == job.id).scalar_subquery()
    query = select(OutcomeRow, attempt).where(OutcomeRow.job_id == job.id).order_by(OutcomeRow.index)
    rows = session.execute(query).all()
    if len(rows) < job.num_requests:
        return None
    return OnlineEnd([row[0] for row in rows], rows[0][1] or 0)


def first_body(session: Session, job: JobRow) -> str:
    """What the job's first request asks for."""
    query = select(RequestRow.body).where(RequestRow.job_id == job.id, RequestRow.index == 0)
    return session.scalar(query) or ""


def set_expiry(session: Session, job: JobRow, after: timedelta) -> None:
    """How long the job may still go on, unless it ends or is ended first."""
    session.execute(
        update(JobRow)
        .where(JobRow.id == job.id, JobRow.state == JobState.IN_PROGRESS.value, JobRow.ending.is_(None))
        .values(expires_at=func.clock_timestamp() + after)
    )


def end_whole(database: Database, owner: str, ends: Sequence[WholeEnd]) -> dict[int, bool]:
    """In one transaction of its own: chunk id -> whether its job has ended with it, which one that is being stopped
    has not. A chunk that is leased to somebody else by now is absent, and nothing of it was written."""
    rows = [{"job_id": end.lease.job_id, **asdict(outcome)} for end in ends for outcome in end.outcomes]
    values = {
        "owner": owner,
        "ends": msgspec.json.encode([end.counts() for end in ends]).decode(),
        "outcomes": msgspec.json.encode(rows).decode(),
    }
    return {row["chunk_id"]: row["is_completed"] for row in database.run(_END, values)}


def complete(session: Session, job_id: int) -> bool:
    """Ends a job that has all its outcomes; False where it is being stopped, has ended, or lacks one."""
    return _COMPLETE.execute(session, {"job_id": job_id}).fetchone() is not None
