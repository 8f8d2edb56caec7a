"""Which models there are and which engines serve them."""

from collections.abc import Mapping, Sequence

from sqlalchemy import delete, exists, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.tables import ModelRow, PlacementRow


def place(session: Session, *, node: str, devices: Sequence[str], sources: Mapping[str, str]) -> None:
    """Replaces what a node says it serves: every model (name -> source) on each of its devices."""
    for name, source in sources.items():
        row = insert(ModelRow).values(name=name, source=source)
        session.execute(row.on_conflict_do_update(index_elements=["name"], set_={"source": source}))
    session.execute(delete(PlacementRow).where(PlacementRow.node == node))
    session.add_all(PlacementRow(node=node, device=device, model=name) for device in devices for name in sources)
    session.flush()


def list_served(session: Session) -> Sequence[ModelRow]:
    """Models that some engine serves, by name."""
    is_placed = exists().where(PlacementRow.model == ModelRow.name)
    return session.scalars(select(ModelRow).where(is_placed).order_by(ModelRow.name)).all()


def is_served(session: Session, name: str) -> bool:
    return session.scalar(select(PlacementRow.model).where(PlacementRow.model == name).limit(1)) is not None
