"""Responses as rows: each beside the online job that makes it, and the conversation that it continues."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Integer, delete, literal, select
from sqlalchemy.orm import Session, aliased

from core.errors import NotFound
from core.job import ChunkState, JobState
from db.tables import ChunkRow, JobRow, OutcomeRow, ResponseRow

MAX_TURNS = 1000  # of a conversation


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """outcome: None while there is none. is_running: a worker has it."""

    row: ResponseRow
    job: JobRow
    outcome: OutcomeRow | None
    is_running: bool

    @property
    def is_cancelled(self) -> bool:
        return self.job.ending in (JobState.CANCELLED.value, JobState.EXPIRED.value)


_OUTCOME = (OutcomeRow.job_id == ResponseRow.job_id) & (OutcomeRow.index == 0)
_CHUNK = (ChunkRow.job_id == ResponseRow.job_id) & (ChunkRow.index == 0)
_SELECT = (
    select(ResponseRow, JobRow, OutcomeRow, ChunkRow.state)
    .join(JobRow, JobRow.id == ResponseRow.job_id)
    .outerjoin(OutcomeRow, _OUTCOME)
    .outerjoin(ChunkRow, _CHUNK)
)


def add(session: Session, row: ResponseRow) -> ResponseRow:
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def find(session: Session, response_id: str, *, tenant: str, is_stored: bool = True) -> StoredResponse:
    """Raises NotFound when this tenant has no such response. is_stored false: also one that is not kept."""
    query = _SELECT.where(ResponseRow.id == response_id, ResponseRow.tenant == tenant)
    if is_stored:
        query = query.where(ResponseRow.is_stored)
    found = session.execute(query).one_or_none()
    if found is None:
        raise NotFound(f"no response with id {response_id!r}", param="id")
    return _stored(*found)


def conversation(session: Session, response_id: str, *, tenant: str) -> list[StoredResponse]:
    """The response and all that it continues, the oldest first. Raises NotFound where one of them is gone."""
    turn = select(ResponseRow.id, ResponseRow.previous_id, literal(0, Integer).label("age")).where(
        ResponseRow.id == response_id, ResponseRow.tenant == tenant, ResponseRow.is_stored
    )
    turns = turn.cte("turns", recursive=True)
    earlier = aliased(ResponseRow)
    turns = turns.union_all(
        select(earlier.id, earlier.previous_id, turns.c.age + 1)
        .join(turns, earlier.id == turns.c.previous_id)
        .where(earlier.tenant == tenant, earlier.is_stored, turns.c.age < MAX_TURNS)
    )
    rows = session.execute(_SELECT.join(turns, turns.c.id == ResponseRow.id).order_by(turns.c.age.desc())).all()
    found = [_stored(*row) for row in rows]
    missing = response_id if not found else found[0].row.previous_id
    if missing is not None:
        raise NotFound(
            f"no response with id {missing!r}: the conversation cannot be continued",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return found


def _stored(row: ResponseRow, job: JobRow, outcome: OutcomeRow | None, chunk: str | None) -> StoredResponse:
    return StoredResponse(row, job, outcome, chunk == ChunkState.RUNNING.value)


def remove(session: Session, response_ids: Sequence[str]) -> None:
    session.execute(delete(ResponseRow).where(ResponseRow.id.in_(response_ids)))
