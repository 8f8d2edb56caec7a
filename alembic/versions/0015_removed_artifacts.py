"""Artifacts that are on their way out, and what each engine serves its models from.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("placements", sa.Column("source", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("placements", "source")
    op.drop_column("artifacts", "removed_at")
