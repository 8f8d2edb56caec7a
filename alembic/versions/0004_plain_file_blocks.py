"""File blocks are stored as they come: compressing a megabyte takes longer than writing it.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Blocks that are there stay as they are, and are read as before.
    op.execute("ALTER TABLE file_blocks ALTER COLUMN data SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.execute("ALTER TABLE file_blocks ALTER COLUMN data SET STORAGE EXTENDED")
