"""How many requests of a chunk are suspected of the last crash of the engine.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chunks", sa.Column("crash_width", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("chunks", "crash_width")
