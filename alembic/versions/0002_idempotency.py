"""Idempotency keys, files that expire, tokens that came from a cache.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COUNTED = ("jobs", "chunks")


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "route", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False)
    op.add_column("files", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_files_expires_at",
        "files",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.add_column(
        "file_blocks",
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )
    op.add_column("jobs", sa.Column("output_expires_after_seconds", sa.Integer(), nullable=True))
    for table in COUNTED:
        op.add_column(table, sa.Column("cached_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("outcomes", sa.Column("cached_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    op.drop_column("outcomes", "cached_tokens")
    for table in COUNTED:
        op.drop_column(table, "cached_tokens")
    op.drop_column("jobs", "output_expires_after_seconds")
    op.drop_column("file_blocks", "created_at")
    op.drop_index("ix_files_expires_at", table_name="files", postgresql_where=sa.text("expires_at IS NOT NULL"))
    op.drop_column("files", "expires_at")
    op.drop_index("ix_idempotency_keys_created_at", table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
