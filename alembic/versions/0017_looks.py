"""When the reconciler looks at a job next, so that it need not look at all of them, and at a chunk that has ended. The
release before runs on it: what it inserts is looked at after the default, what it moves within a minute.

Revision ID: 0017
Revises: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_UNFINISHED = sa.text("state IN ('validating', 'in_progress', 'finalizing', 'cancelling')")


def upgrade() -> None:
    look_at = sa.Column(
        "look_at", sa.DateTime(timezone=True), server_default=sa.text("now() + interval '10 seconds'"), nullable=False
    )
    op.add_column("jobs", look_at)
    op.create_index("ix_jobs_look_at", "jobs", ["look_at"], unique=False, postgresql_where=_UNFINISHED)
    # What reads all that are unfinished finds them through the new one.
    op.drop_index("ix_jobs_unfinished", table_name="jobs")
    op.create_index(
        "ix_jobs_expires_at",
        "jobs",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("state = 'in_progress' AND ending IS NULL"),
    )
    op.add_column("chunks", sa.Column("look_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_chunks_look_at", "chunks", ["look_at"], unique=False, postgresql_where=sa.text("look_at IS NOT NULL")
    )
    # Those that were cancelled while they waited for another try are no longer among them.
    op.drop_index("ix_chunks_delayed", table_name="chunks")
    op.create_index(
        "ix_chunks_delayed",
        "chunks",
        ["available_at"],
        unique=False,
        postgresql_where=sa.text("state = 'waiting' AND available_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_chunks_delayed", table_name="chunks")
    op.create_index(
        "ix_chunks_delayed",
        "chunks",
        ["available_at"],
        unique=False,
        postgresql_where=sa.text("available_at IS NOT NULL"),
    )
    op.drop_index("ix_chunks_look_at", table_name="chunks")
    op.drop_column("chunks", "look_at")
    op.drop_index("ix_jobs_expires_at", table_name="jobs")
    op.create_index("ix_jobs_unfinished", "jobs", ["id"], unique=False, postgresql_where=_UNFINISHED)
    op.drop_index("ix_jobs_look_at", table_name="jobs")
    op.drop_column("jobs", "look_at")
