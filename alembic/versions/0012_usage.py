"""Accounting: what outcomes used, as it is written with them and folded into days; device seconds of outcomes.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ZERO = sa.text("0")


def upgrade() -> None:
    op.add_column("outcomes", sa.Column("device_seconds", sa.REAL(), server_default=ZERO, nullable=False))
    op.create_table(
        "usage_entries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), server_default=ZERO, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        *_sums(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_entries")),
    )
    op.create_table(
        "usage_days",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), server_default=ZERO, autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        *_sums(),
        sa.PrimaryKeyConstraint("tenant", "day", "key_id", "model", name=op.f("pk_usage_days")),
        postgresql_with={"fillfactor": "70"},
    )


def _sums() -> list[sa.Column[int] | sa.Column[float]]:
    names = ("num_requests", "num_failed", "prompt_tokens", "cached_tokens", "completion_tokens")
    seconds: sa.Column[float] = sa.Column("device_seconds", sa.Double(), server_default=ZERO, nullable=False)
    return [*(sa.Column(name, sa.BigInteger(), server_default=ZERO, nullable=False) for name in names), seconds]


def downgrade() -> None:
    op.drop_table("usage_days")
    op.drop_table("usage_entries")
    op.drop_column("outcomes", "device_seconds")
