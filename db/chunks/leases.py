"""Leases while they run: renewing them, hearing that a job stops or a queue is paused, taking expired ones back.

Time is the database's. A lease that ends later than any worker asks for was written under another clock and is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from core.job import ChunkState
from db import shares


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that a worker believes to hold."""

    chunk_id: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a lease that is still held stands. is_stopping: its job is being cancelled or has expired. is_paused: a
    person holds its model or queue."""

    held: Held
    is_stopping: bool
    is_paused: bool


_STANDING_COLUMNS = """
    c.id, c.attempt, (jobs.state = 'cancelling' OR jobs.ending IS NOT NULL) AS is_stopping,
    EXISTS (SELECT FROM pauses WHERE pauses.service_class IN ('*', c.service_class)
            AND pauses.model IN ('*', c.model)) AS is_paused
"""

_HELD = """
    c.id = held.chunk_id AND c.attempt = held.attempt AND c.owner = :owner AND c.state = 'running'
    AND jobs.id = c.job_id
"""

_LOOK = """
SELECT {standing}
FROM unnest(CAST(:ids AS bigint[]), CAST(:attempts AS int[])) AS held(chunk_id, attempt), chunks AS c, jobs
WHERE {held}
"""

# In order of their ids, so that two processes that write several leases cannot wait for each other.
_RENEW = """
UPDATE chunks AS c SET lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
FROM (SELECT chunks.id AS chunk_id, chunks.attempt
      FROM unnest(CAST(:ids AS bigint[]), CAST(:attempts AS int[])) AS wanted(id, attempt)
      JOIN chunks ON chunks.id = wanted.id AND chunks.attempt = wanted.attempt
      ORDER BY chunks.id FOR UPDATE OF chunks) AS held, jobs
WHERE {held}
RETURNING {standing}
"""

_LOOK_STATEMENT, _RENEW_STATEMENT = (
    text(statement.format(standing=_STANDING_COLUMNS, held=_HELD)) for statement in (_LOOK, _RENEW)
)

# Running chunks are no more than workers run at once, so all of them are looked at: an index by the end of their leases
# would have to be written with every renewal.
_EXPIRE = text("""
WITH expired AS (
    SELECT id FROM chunks WHERE state = 'running' AND lease_until < statement_timestamp() FOR UPDATE SKIP LOCKED
)
UPDATE chunks SET owner = NULL, lease_until = NULL,
    state = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL THEN 'cancelled' ELSE 'waiting' END,
    look_at = CASE WHEN jobs.state = 'cancelling' OR jobs.ending IS NOT NULL THEN clock_timestamp() END
FROM expired, jobs WHERE chunks.id = expired.id AND jobs.id = chunks.job_id
RETURNING chunks.id, jobs.public_id, chunks.index, chunks.attempt, chunks.state
""")

_CLAMP = text("""
WITH stretched AS (
    SELECT id FROM chunks
    WHERE state = 'running' AND lease_until > statement_timestamp() + make_interval(secs => :longest_seconds)
    FOR UPDATE SKIP LOCKED
)
UPDATE chunks SET lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
FROM stretched WHERE chunks.id = stretched.id RETURNING chunks.id
""")


def standing(session: Session, owner: str, held: Sequence[Held]) -> list[Standing]:
    """How each of these leases stands; one that is lost is missing."""
    return _standings(session.execute(_LOOK_STATEMENT, _held_values(owner, held)).all())


def renew(session: Session, owner: str, held: Sequence[Held], lease_seconds: float) -> list[Standing]:
    """As `standing`, and those that are held belong to their owner for another `lease_seconds`."""
    values = {**_held_values(owner, held), "lease_seconds": lease_seconds}
    return _standings(session.execute(_RENEW_STATEMENT, values).all())


def _standings(rows: Sequence[Row[int, int, bool, bool]]) -> list[Standing]:
    return [Standing(Held(row[0], row[1]), row[2], row[3]) for row in rows]


def _held_values(owner: str, held: Sequence[Held]) -> dict[str, object]:
    return {
        "owner": owner,
        "ids": [lease.chunk_id for lease in held],
        "attempts": [lease.attempt for lease in held],
    }


def expire(session: Session) -> list[tuple[int, str, int, int]]:
    """Takes back every chunk whose lease has run out: (chunk id, job's public id, chunk index, attempt) of each."""
    rows = session.execute(_EXPIRE).all()
    shares.settle(session, [row.id for row in rows if row.state == ChunkState.CANCELLED])
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def clamp(session: Session, *, lease_seconds: float, longest_seconds: float) -> int:
    """Cuts leases that end further ahead than `longest_seconds` to one of `lease_seconds`; returns how many."""
    values = {"lease_seconds": lease_seconds, "longest_seconds": longest_seconds}
    return len(session.execute(_CLAMP, values).all())
