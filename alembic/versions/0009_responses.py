"""Responses: what the Responses API keeps beside the jobs that make them.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), server_default="default", nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("previous_id", sa.Text(), nullable=True),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        sa.Column("has_tools", sa.Boolean(), nullable=False),
        sa.Column("is_streamed", sa.Boolean(), nullable=False),
        sa.Column("items", sa.Text(), nullable=False),
        sa.Column("echo", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_responses_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_responses")),
    )
    op.create_index("ix_responses_job_id", "responses", ["job_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_responses_job_id", table_name="responses")
    op.drop_table("responses")
