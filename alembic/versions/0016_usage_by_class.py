"""Entries of usage say of which class the work was, so that the rates of queues can be read from them.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage_entries", sa.Column("service_class", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("usage_entries", "service_class")
