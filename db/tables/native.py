"""Tables beside those of `db.tables`: what jobs that are no inference say of themselves, and what they make."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from core.job import DEFAULT_TENANT
from db.tables.base import Row


class HeavyJobRow(Row):
    """What a job that is no inference says of itself while it runs. `node`: the only one that may run it; NULL: any
    that serves its model. `device`: where it ran last, as `device@node`. `fraction`: how far it is, [0, 1]."""

    __tablename__ = "heavy_jobs"

    job_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    node: Mapped[str | None]
    device: Mapped[str | None]
    fraction: Mapped[float] = mapped_column(server_default=text("0"))
    message: Mapped[str] = mapped_column(server_default="")


class ArtifactRow(Row):
    """A model directory that a job made, on the node that made it. `details`: what was measured of it. `removed_at`: it
    is gone for its tenant, and its node is still to take the bytes away."""

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    name: Mapped[str]
    kind: Mapped[str]
    source_model: Mapped[str]
    node: Mapped[str]
    directory: Mapped[str]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    job_public_id: Mapped[str]
    details: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    removed_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_artifacts_tenant_created_at", "tenant", "created_at"),)


class DeviceRow(Row):
    """What the engine of a device said of itself last: `{models, stats}`, as `core.protocol` has them."""

    __tablename__ = "devices"

    node: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    report: Mapped[dict[str, Any]]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)
