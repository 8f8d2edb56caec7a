"""Which models there are and which engines serve them."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, case, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.tables import ModelRow, PlacementRow

# A node that restarts keeps its models on the list; one that has been silent for so long is taken to be gone.
PLACEMENT_LIFETIME = timedelta(minutes=15)


def place(session: Session, *, node: str, devices: Sequence[str], sources: Mapping[str, str]) -> None:
    """Replaces what a node says it serves: every model (name -> source) on each of its devices."""
    for name, source in sources.items():
        row = insert(ModelRow).values(name=name, source=source)
        kind = case((ModelRow.source == source, ModelRow.kind))  # of another source it is not known yet
        session.execute(row.on_conflict_do_update(index_elements=["name"], set_={"source": source, "kind": kind}))
    session.execute(delete(PlacementRow).where(PlacementRow.node == node))
    session.add_all(
        PlacementRow(node=node, device=device, model=name, source=source)
        for device in devices
        for name, source in sources.items()
    )
    session.flush()


def refresh(session: Session, *, node: str, device: str, kinds: Mapping[str, str] | None = None) -> None:
    """Says that the models of a device are still served. kinds: name -> what its engine says of it, where that is
    known."""
    for name, kind in (kinds or {}).items():
        is_news = (ModelRow.name == name) & ModelRow.kind.is_distinct_from(kind)
        session.execute(update(ModelRow).where(is_news).values(kind=kind))
    session.execute(
        update(PlacementRow)
        .where(PlacementRow.node == node, PlacementRow.device == device)
        .values(seen_at=func.clock_timestamp())
    )


def _is_recent() -> ColumnElement[bool]:
    return PlacementRow.seen_at > func.clock_timestamp() - PLACEMENT_LIFETIME


def list_served(session: Session) -> Sequence[ModelRow]:
    """Models that some engine serves, by name."""
    is_placed = exists().where(PlacementRow.model == ModelRow.name, _is_recent())
    return session.scalars(select(ModelRow).where(is_placed).order_by(ModelRow.name)).all()


def find_served(session: Session, name: str) -> ModelRow | None:
    is_placed = exists().where(PlacementRow.model == name, _is_recent())
    return session.scalar(select(ModelRow).where(ModelRow.name == name, is_placed))


def served_from(session: Session) -> dict[str, list[str]]:
    """Directory, as `normal` writes it -> who serves a model from it, as `model on node`."""
    found: dict[str, list[str]] = defaultdict(list)
    query = select(PlacementRow.source, PlacementRow.model, PlacementRow.node).where(_is_recent()).distinct()
    for source, model, node in session.execute(query.order_by(PlacementRow.model, PlacementRow.node)):
        if source is not None:
            found[normal(source)].append(f"{model} on {node}")
    return found


def normal(directory: str) -> str:
    """One way to write a path, whatever dots and slashes a person put into it."""
    return os.path.normpath(directory)


def list_nodes(session: Session) -> list[str]:
    """Those that serve something, by name."""
    return list(session.scalars(select(PlacementRow.node).where(_is_recent()).distinct().order_by(PlacementRow.node)))
