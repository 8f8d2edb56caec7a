"""Shares between tenants, pauses, retries, and what chunks and outcomes tell about them. The release before runs on it:
every new column has a default, and chunks that it cuts belong to the default tenant.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chunks", sa.Column("tenant", sa.Text(), server_default="default", nullable=False))
    op.add_column("chunks", sa.Column("cost_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("chunks", sa.Column("available_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("outcomes", sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.create_index(
        "ix_chunks_waiting_tenant",
        "chunks",
        ["service_class", "model", "priority", "tenant", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'waiting' AND available_at IS NULL"),
    )
    op.create_index(
        "ix_chunks_delayed",
        "chunks",
        ["available_at"],
        unique=False,
        postgresql_where=sa.text("available_at IS NOT NULL"),
    )
    op.create_table(
        "tenant_shares",
        sa.Column("service_class", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("used_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("service_class", "model", "priority", "tenant", name=op.f("pk_tenant_shares")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "pauses",
        sa.Column("service_class", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("service_class", "model", name=op.f("pk_pauses")),
    )
    op.create_table(
        "retries",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("num_attempts", sa.Integer(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "index", name=op.f("pk_retries")),
    )
    op.execute(
        "INSERT INTO tenant_shares (service_class, model, priority, tenant) SELECT DISTINCT service_class, model,"
        " priority, tenant FROM chunks WHERE state IN ('waiting', 'running')"
    )


def downgrade() -> None:
    op.drop_table("retries")
    op.drop_table("pauses")
    op.drop_table("tenant_shares")
    op.drop_index("ix_chunks_delayed", table_name="chunks", postgresql_where=sa.text("available_at IS NOT NULL"))
    op.drop_index("ix_chunks_waiting_tenant", table_name="chunks")
    op.drop_column("outcomes", "attempt")
    op.drop_column("chunks", "available_at")
    op.drop_column("chunks", "cost_tokens")
    op.drop_column("chunks", "tenant")
