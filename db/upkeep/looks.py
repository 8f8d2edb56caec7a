"""What the reconciler looks at: jobs that are due, chunks that have ended, jobs whose window has closed. Each through
an index of those alone, in the order in which they became due, and so many at once at most: what a look costs does not
depend on how many jobs there are.

A job is due (`jobs.look_at`) soon after it begins to wait for a message, which may be lost, and again as long as it
waits. A job whose chunks wait or run waits for none: its last chunk, when it ends, asks for the look (`chunks.look_at`)
in the transaction that ends it. Chunks that the release before ends ask for nothing; therefore, and for no other
reason, such jobs are due now and then too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from core.job import JobState
from db import chunks
from db.tables import JobRow

MOST_JOBS, MOST_CHUNKS = 256, 1000

_UNFINISHED = "state IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
_IS_BUSY = "EXISTS (SELECT FROM chunks c WHERE c.job_id = jobs.id AND c.state IN ('waiting', 'running'))"

# In the order of their ids, as two may do this at once.
_NOTE_ENDED = """
WITH due AS (
    SELECT id FROM chunks WHERE look_at <= statement_timestamp()
    ORDER BY look_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
), ended AS (
    UPDATE chunks SET look_at = NULL FROM due WHERE chunks.id = due.id RETURNING chunks.job_id
), idle AS (
    SELECT id FROM jobs WHERE id IN (SELECT job_id FROM ended) AND {unfinished} AND NOT {busy}
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE jobs SET look_at = statement_timestamp() FROM idle WHERE jobs.id = idle.id
"""

_TAKE_DUE = """
SELECT id, state = 'cancelling' OR ending IS NOT NULL FROM jobs
WHERE {unfinished} AND look_at <= statement_timestamp()
ORDER BY look_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
"""

# Those for which there is no room go behind all that are due, so that some that cannot move on do not hide the others.
_LOOK = """
WITH seen AS (
    SELECT id, look_at, state <> 'in_progress' OR ending IS NOT NULL AS is_passing, {busy} AS is_busy
    FROM jobs WHERE id = ANY(:ids)
), ranked AS (
    SELECT *, NOT is_busy AND row_number() OVER (PARTITION BY is_busy ORDER BY look_at, id) <= :room AS has_turn
    FROM seen
)
UPDATE jobs SET look_at = statement_timestamp() + CASE
    WHEN ranked.has_turn THEN interval '10 seconds'
    WHEN NOT ranked.is_busy THEN interval '0'
    WHEN ranked.is_passing THEN interval '10 seconds'
    ELSE interval '60 seconds' END
FROM ranked WHERE jobs.id = ranked.id
RETURNING ranked.has_turn, jobs.public_id, jobs.state
"""

_NOTE_ENDED_STATEMENT, _TAKE_DUE_STATEMENT, _LOOK_STATEMENT = (
    text(statement.format(unfinished=_UNFINISHED, busy=_IS_BUSY)) for statement in (_NOTE_ENDED, _TAKE_DUE, _LOOK)
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job without a busy chunk that has not ended: it waits for its validation or its finalization."""

    public_id: str
    state: str


def note_ended(session: Session, *, limit: int = MOST_CHUNKS) -> None:
    """Jobs whose last chunk has ended are due now."""
    session.execute(_NOTE_ENDED_STATEMENT, {"limit": limit})


def look(session: Session, *, room: int, limit: int = MOST_JOBS) -> list[Waiting]:
    """Looks at jobs that are due: of those that are being stopped, what is idle is cancelled; of those that wait for a
    message, the first `room` are returned. All become due again, later."""
    due = session.execute(_TAKE_DUE_STATEMENT, {"limit": limit}).all()
    if not due:
        return []
    chunks.cancel_waiting(session, [job_id for job_id, is_stopping in due if is_stopping])
    looked = session.execute(_LOOK_STATEMENT, {"ids": [row[0] for row in due], "room": room}).all()
    return [Waiting(public_id, state) for has_turn, public_id, state in looked if has_turn]


def overdue(session: Session, *, limit: int = MOST_JOBS) -> Sequence[JobRow]:
    """Jobs in progress whose window has closed, locked for this transaction; those another one holds are left out."""
    is_due = (JobRow.state == JobState.IN_PROGRESS.value) & JobRow.ending.is_(None)
    query = select(JobRow).where(is_due, JobRow.expires_at < func.statement_timestamp())
    return session.scalars(
        query.order_by(JobRow.expires_at).limit(limit).with_for_update(key_share=True, skip_locked=True)
    ).all()
