"""Pauses: a person holds a model, a queue, or both; nothing new of them is claimed, and running chunks are handed back
when what is in flight has ended, which of a heavy job is all of it (`db.native.queues.still_running`). `*` stands for
every model, or every queue."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.tables import PauseRow

EVERY = "*"


def pause(session: Session, *, service_class: str = EVERY, model: str = EVERY) -> None:
    """Does nothing where it is paused already."""
    session.execute(insert(PauseRow).values(service_class=service_class, model=model).on_conflict_do_nothing())


def resume(session: Session, *, service_class: str = EVERY, model: str = EVERY) -> int:
    """Lifts every pause within these bounds and returns how many they were: `*` also those of single models and
    queues. A wider pause stays."""
    statement = delete(PauseRow)
    if service_class != EVERY:
        statement = statement.where(PauseRow.service_class == service_class)
    if model != EVERY:
        statement = statement.where(PauseRow.model == model)
    return len(session.execute(statement.returning(PauseRow.model)).all())


def list_pauses(session: Session) -> Sequence[PauseRow]:
    return session.scalars(select(PauseRow).order_by(PauseRow.service_class, PauseRow.model)).all()
