"""Retention finds the oldest jobs of a class.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_service_class_created_at", "jobs", ["service_class", "created_at"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_jobs_service_class_created_at", table_name="jobs")
