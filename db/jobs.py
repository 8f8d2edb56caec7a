"""Jobs as rows: making, reading, listing, and each change of state, which goes through the table in `core.job`."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import func, inspect, select, text, update
from sqlalchemy.orm import Session, make_transient_to_detached

from core.errors import Conflict, NotFound
from core.job import (
    DEFAULT_PRIORITY,
    DEFAULT_TENANT,
    JOB_MOVES,
    TERMINAL_CHUNK_STATES,
    TERMINAL_JOB_STATES,
    ChunkState,
    JobKind,
    JobState,
    ServiceClass,
)
from db import chunks, shares
from db.connection import Database, Statement
from db.tables import ChunkRow, JobRow

UNFINISHED_STATES = tuple(state.value for state in JobState if state not in TERMINAL_JOB_STATES)
ENDING_STATES = (JobState.IN_PROGRESS.value, JobState.FINALIZING.value, JobState.CANCELLING.value)
FINALIZING_LOCK = 0x66696E << 32  # above every job id
BUSY_CHUNK_STATES = tuple(state.value for state in ChunkState if state not in TERMINAL_CHUNK_STATES)


# A job in progress asks for a look when its last chunk ends; one that is being stopped is looked at at once: see
# `db.upkeep.looks`.
_LOOK_AFTER = {
    JobState.IN_PROGRESS: timedelta(seconds=60),
    JobState.FINALIZING: timedelta(seconds=10),
    JobState.CANCELLING: timedelta(0),
}

# One statement, as somebody waits for it: jobs, each with its requests and its chunk.
_CREATE_ONLINE = Statement("""
WITH given AS (
    SELECT * FROM json_to_recordset(CAST(:jobs AS json)) AS one(public_id text, tenant text, key_id bigint,
        endpoint text, model text, priority smallint, expires_seconds float, bodies json, num_requests int)
), job AS (
    INSERT INTO jobs (public_id, tenant, key_id, kind, service_class, state, endpoint, model, priority, num_requests,
        in_progress_at, expires_at, look_at)
    SELECT public_id, tenant, key_id, :kind, :service_class, :state, endpoint, model, priority, num_requests, now(),
        now() + make_interval(secs => expires_seconds), now() + interval '60 seconds'
    FROM given
    RETURNING id, public_id, num_requests, model, service_class, tenant, priority, created_at, expires_at, look_at
), asked AS (
    INSERT INTO requests (job_id, index, custom_id, body)
    SELECT job.id, body.number - 1, job.public_id, body.value
    FROM given JOIN job ON job.public_id = given.public_id,
        json_array_elements_text(given.bodies) WITH ORDINALITY AS body(value, number)
), chunk AS (
    INSERT INTO chunks (job_id, index, first_request, num_requests, model, service_class, tenant, priority, state)
    SELECT id, 0, 0, num_requests, model, service_class, tenant, priority, :chunk_state FROM job
)
SELECT public_id, id, created_at, expires_at, look_at FROM job
""")

_ONLINE = {
    "kind": JobKind.INFERENCE.value,
    "service_class": ServiceClass.ONLINE.value,
    "state": JobState.IN_PROGRESS.value,
}

_GIVEN = (
    "public_id",
    "tenant",
    "key_id",
    "kind",
    "service_class",
    "state",
    "endpoint",
    "model",
    "priority",
    "num_requests",
)
_COUNTS = ("num_completed", "num_failed", "prompt_tokens", "completion_tokens", "cached_tokens")
_CREATED = ("id", "created_at", "expires_at", "look_at")
_OPTIONAL = tuple(
    column.key
    for column in inspect(JobRow).column_attrs
    if column.columns[0].nullable and column.key not in (*_GIVEN, "in_progress_at", "expires_at")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    endpoint: str
    input_file_id: str
    completion_window: str
    expires_after: timedelta
    output_expires_after_seconds: int | None = None
    user_metadata: dict[str, Any] | None = None
    tenant: str = DEFAULT_TENANT
    key_id: int | None = None
    priority: int = DEFAULT_PRIORITY


def new_public_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOnlineRequest:
    """public_id: of the job that is made of it, where somebody listens for its end before it is there."""

    endpoint: str
    model: str
    body: str
    expires_after: timedelta
    tenant: str = DEFAULT_TENANT
    key_id: int | None = None
    priority: int = DEFAULT_PRIORITY
    more_bodies: tuple[str, ...] = ()
    public_id: str | None = None

    @property
    def bodies(self) -> tuple[str, ...]:
        return (self.body, *self.more_bodies)


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of a job's rows; a busy chunk is waiting or running."""

    num_completed: int
    num_failed: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    num_busy_chunks: int


def create_batch(session: Session, batch: NewBatch) -> JobRow:
    job = JobRow(
        public_id=new_public_id("batch"),
        tenant=batch.tenant,
        key_id=batch.key_id,
        kind=JobKind.INFERENCE.value,
        service_class=ServiceClass.BATCH.value,
        state=JobState.VALIDATING.value,
        endpoint=batch.endpoint,
        priority=batch.priority,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        output_expires_after_seconds=batch.output_expires_after_seconds,
        user_metadata=batch.user_metadata,
        expires_at=func.now() + batch.expires_after,
    )
    session.add(job)
    session.flush()
    session.refresh(job)
    return job


def create_online(session: Session, request: NewOnlineRequest) -> JobRow:
    """A job of one chunk, ready to run, and as a rule of one request."""
    public_id = request.public_id or new_online_id()
    row = _CREATE_ONLINE.execute(session, _new_values({public_id: request})).fetchone()
    assert row is not None
    job = _stored(public_id, request, dict(zip(_CREATED, row[1:], strict=True)))
    session.add(job)
    return job


def create_many_online(database: Database, requests: Sequence[NewOnlineRequest]) -> list[JobRow]:
    """All of them or none, in a transaction of its own and in this order. Raises as `Database.begin`."""
    by_id = {request.public_id or new_online_id(): request for request in requests}
    rows = {row.pop("public_id"): row for row in database.run(_CREATE_ONLINE, _new_values(by_id))}
    return [_stored(public_id, request, rows[public_id]) for public_id, request in by_id.items()]


def new_online_id() -> str:
    return new_public_id("req")


def _new_values(requests: Mapping[str, NewOnlineRequest]) -> dict[str, Any]:
    given = [
        {
            "public_id": public_id,
            "tenant": request.tenant,
            "key_id": request.key_id,
            "endpoint": request.endpoint,
            "model": request.model,
            "priority": request.priority,
            "expires_seconds": request.expires_after.total_seconds(),
            "bodies": request.bodies,
            "num_requests": len(request.bodies),
        }
        for public_id, request in requests.items()
    ]
    return {**_ONLINE, "chunk_state": ChunkState.WAITING.value, "jobs": msgspec.json.encode(given).decode()}


def _stored(public_id: str, request: NewOnlineRequest, created: Mapping[str, Any]) -> JobRow:
    """The row as it would be read: what the statement leaves out is what its columns are by default."""
    job = JobRow(
        **_ONLINE,
        **dict.fromkeys(_OPTIONAL),
        **dict.fromkeys(_COUNTS, 0),
        **created,
        public_id=public_id,
        tenant=request.tenant,
        key_id=request.key_id,
        endpoint=request.endpoint,
        model=request.model,
        priority=request.priority,
        num_requests=len(request.bodies),
        in_progress_at=created["created_at"],
    )
    make_transient_to_detached(job)
    return job


def find(session: Session, public_id: str, *, tenant: str) -> JobRow:
    """Raises NotFound when this tenant has no such job."""
    job = session.scalar(select(JobRow).where(JobRow.public_id == public_id, JobRow.tenant == tenant))
    if job is None:
        raise NotFound(f"no job with id {public_id!r}", param="id")
    return job


def begin_finalizing(guard: Session, public_id: str) -> JobRow | None:
    """The job when it can be ended now: no chunk is busy, it has not ended, and nobody else ends it, which stays so
    until the guarding transaction is over. None otherwise."""
    guard.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))  # it waits for files to be written
    job = guard.scalar(select(JobRow).where(JobRow.public_id == public_id, JobRow.state.in_(ENDING_STATES)))
    if job is None or not guard.scalar(select(func.pg_try_advisory_xact_lock(FINALIZING_LOCK + job.id))):
        return None
    guard.refresh(job)
    held = progress(guard, [job.id]).get(job.id)
    if job.state not in ENDING_STATES or (held is not None and held.num_busy_chunks):
        return None
    guard.expunge(job)
    return job


def list_batches(session: Session, *, tenant: str, after: str | None, limit: int) -> Sequence[JobRow]:
    """Jobs from files, newest first; `after` is the public id of the last one of the page before. Raises NotFound for
    an unknown one."""
    query = select(JobRow).where(JobRow.tenant == tenant, JobRow.input_file_id.is_not(None))
    if after is not None:
        query = query.where(JobRow.id < find(session, after, tenant=tenant).id)
    return session.scalars(query.order_by(JobRow.id.desc()).limit(limit)).all()


def move(session: Session, job_id: int, following: JobState, values: Mapping[str, Any] | None = None) -> bool:
    """Changes the state if the table of moves allows it, stamping `<state>_at` with the database's time.
    False when the job is in no state that leads there."""
    origins = [state.value for state, targets in JOB_MOVES.items() if following in targets]
    changed = session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state.in_(origins))
        .values(
            state=following.value, **{f"{following.value}_at": func.now()}, **_next_look(following), **(values or {})
        )
        .returning(JobRow.id)
    )
    return changed.scalar_one_or_none() is not None


def _next_look(state: JobState) -> dict[str, Any]:
    """When the reconciler looks at a job that has come into this state."""
    after = _LOOK_AFTER.get(state)
    return {} if after is None else {"look_at": func.clock_timestamp() + after}


def stop(session: Session, job: JobRow, ending: JobState) -> bool:
    """Begin to end a job early: what waits is cancelled now, what runs is given up by its workers.
    `ending` is CANCELLED or EXPIRED. False where it is past stopping, and stays as it is."""
    if ending is JobState.CANCELLED:
        stopping = move(session, job.id, JobState.CANCELLING, {"ending": ending.value})
    else:
        stopping = _mark_expired(session, job.id)
    if stopping:
        chunks.cancel_waiting(session, [job.id])
    return stopping


def set_priority(session: Session, job: JobRow, priority: int) -> None:
    """Takes effect on every chunk that is claimed from now on. Raises Conflict when the job has ended."""
    if job.priority == priority:
        return
    changed = session.execute(
        update(JobRow)
        .where(JobRow.id == job.id, JobRow.state.in_(UNFINISHED_STATES))
        .values(priority=priority)
        .returning(JobRow.model)
    ).one_or_none()
    if changed is None:
        raise Conflict(f"expected a job that has not ended, got one that is {job.state}")
    (model,) = changed
    busy = (ChunkRow.job_id == job.id, ChunkRow.state.in_(BUSY_CHUNK_STATES))
    # Chunks before shares, and these by their ids, as whoever claims and writes them locks them.
    session.execute(select(ChunkRow.id).where(*busy).order_by(ChunkRow.id).with_for_update(key_share=True))
    if model is not None and job.service_class != ServiceClass.ONLINE:
        shares.arrive(session, service_class=job.service_class, model=model, priority=priority, tenant=job.tenant)
    session.execute(update(ChunkRow).where(*busy).values(priority=priority))


def _mark_expired(session: Session, job_id: int) -> bool:
    changed = session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state == JobState.IN_PROGRESS.value, JobRow.ending.is_(None))
        .values(ending=JobState.EXPIRED.value, **_next_look(JobState.CANCELLING))
        .returning(JobRow.id)
    )
    return changed.scalar_one_or_none() is not None


def progress(session: Session, job_ids: Sequence[int]) -> dict[int, Progress]:
    """What the chunks of each job hold; a job without chunks is absent."""
    rows = session.execute(
        text(
            "SELECT job_id, sum(num_completed), sum(num_failed), sum(prompt_tokens), sum(completion_tokens),"
            " sum(cached_tokens), count(*) FILTER (WHERE state IN ('waiting', 'running'))"
            " FROM chunks WHERE job_id = ANY(:ids) GROUP BY job_id"
        ),
        {"ids": list(job_ids)},
    )
    return {row[0]: Progress(*(int(value) for value in row[1:])) for row in rows}


def latencies(session: Session, job: JobRow) -> dict[str, float]:
    """How fast the rows of a job were, from its outcomes: percentiles of TTFT and inter-token latency in seconds,
    and the wall time from its first request's arrival at an engine to its last answer."""
    row = session.execute(
        text(
            "SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY first_token_seconds - queue_seconds),"
            " percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY first_token_seconds),"
            " percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY (total_seconds - first_token_seconds)"
            "   / greatest(completion_tokens - 1, 1)) FILTER (WHERE completion_tokens > 1),"
            " extract(epoch FROM max(finished_at) - min(finished_at - make_interval(secs => total_seconds)))"
            " FROM outcomes WHERE job_id = :id AND status_code = 200"
        ),
        {"id": job.id},
    ).one()
    return _timing_summary(row)


def _timing_summary(row: Any) -> dict[str, float]:
    names = ("prefill_seconds", "ttft_seconds", "itl_seconds")
    summary: dict[str, float] = {}
    for name, pair in zip(names, row[:3], strict=True):
        for percentile, value in zip(("p50", "p95"), pair or (), strict=False):
            summary[f"{name}_{percentile}"] = float(value)
    summary["wall_seconds"] = float(row[3] or 0.0)
    return summary
