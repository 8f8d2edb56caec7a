"""Models that jobs made, as their tenants see them, and on their way out: removed at first for the tenant alone, and
forgotten once the node that holds the directory has taken it away. What is served is not removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, delete, exists, func, literal, select, tuple_, update
from sqlalchemy.orm import Session

from core.errors import Conflict, NotFound
from core.job import TERMINAL_JOB_STATES
from db import models
from db.models import normal
from db.tables import ArtifactRow, JobRow

MOST_EXPIRED = 100


@dataclass(frozen=True, slots=True)
class ArtifactPage:
    """rows: newest first. total_bytes: of all that the tenant has, on all nodes together."""

    rows: Sequence[ArtifactRow]
    total_bytes: int


def _is_there(tenant: str) -> ColumnElement[bool]:
    return and_(ArtifactRow.tenant == tenant, ArtifactRow.removed_at.is_(None))


def find(session: Session, artifact_id: str, *, tenant: str) -> ArtifactRow:
    """Raises NotFound when this tenant has no such artifact."""
    row = session.scalar(select(ArtifactRow).where(ArtifactRow.id == artifact_id, _is_there(tenant)))
    if row is None:
        raise NotFound(f"no artifact with id {artifact_id!r}", param="artifact_id")
    return row


def list_artifacts(session: Session, *, tenant: str, after: str | None, limit: int) -> ArtifactPage:
    """Raises NotFound for an unknown `after`, the id of the last one of the page before."""
    query = select(ArtifactRow).where(_is_there(tenant))
    if after is not None:
        last = find(session, after, tenant=tenant)
        position = tuple_(ArtifactRow.created_at, ArtifactRow.id)
        query = query.where(position < tuple_(literal(last.created_at), literal(last.id)))
    newest = query.order_by(ArtifactRow.created_at.desc(), ArtifactRow.id.desc()).limit(limit)
    total = session.scalar(select(func.coalesce(func.sum(ArtifactRow.num_bytes), 0)).where(_is_there(tenant)))
    return ArtifactPage(session.scalars(newest).all(), int(total or 0))


def remove(session: Session, artifact_id: str, *, tenant: str) -> ArtifactRow:
    """For the tenant it is gone; its node takes the directory away. Raises NotFound, and Conflict while a model is
    served from it."""
    row = find(session, artifact_id, tenant=tenant)
    users = models.served_from(session).get(normal(row.directory))
    if users:
        raise Conflict(
            f"expected an artifact that nothing uses, got {row.id}, from which {', '.join(users)} is served: take it "
            "out of MILLRACE_MODELS there and restart that node first"
        )
    row.removed_at = func.now()
    session.flush()
    return row


def expire(session: Session, age: timedelta) -> list[str]:
    """Removes what is older than that, of all tenants, oldest first, but for what is served. Returns the ids of one
    page."""
    query = select(ArtifactRow).where(ArtifactRow.removed_at.is_(None), ArtifactRow.created_at < func.now() - age)
    served = models.served_from(session)
    in_use = [row.id for row in session.scalars(query) if normal(row.directory) in served]
    old = query.where(ArtifactRow.id.not_in(in_use)).order_by(ArtifactRow.created_at).limit(MOST_EXPIRED)
    expired = [row.id for row in session.scalars(old.with_for_update(skip_locked=True))]
    session.execute(update(ArtifactRow).where(ArtifactRow.id.in_(expired)).values(removed_at=func.now()))
    return expired


def removed(session: Session, *, node: str) -> Sequence[ArtifactRow]:
    """Those whose directories this node is to take away."""
    query = select(ArtifactRow).where(ArtifactRow.node == node, ArtifactRow.removed_at.is_not(None))
    return session.scalars(query.order_by(ArtifactRow.removed_at)).all()


def forget(session: Session, artifact_id: str) -> None:
    session.execute(delete(ArtifactRow).where(ArtifactRow.id == artifact_id, ArtifactRow.removed_at.is_not(None)))


def without_artifact(session: Session, job_ids: Sequence[str]) -> list[str]:
    """Of these jobs those that have ended and left none behind; jobs that nobody knows are not among them."""
    has_one = exists().where(ArtifactRow.job_public_id == JobRow.public_id)
    ended = JobRow.state.in_([state.value for state in TERMINAL_JOB_STATES])
    return list(session.scalars(select(JobRow.public_id).where(JobRow.public_id.in_(job_ids), ended, ~has_one)))
