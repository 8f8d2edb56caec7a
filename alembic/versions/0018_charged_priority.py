"""At which priority the first claim of a chunk was charged. The release before leaves it NULL, and settles at the
priority that the chunk has when it ends.

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chunks", sa.Column("charged_priority", sa.SmallInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("chunks", "charged_priority")
