"""Removes small rows that are past their time: idempotency keys, webhook messages that are settled, rows of files that
have expired. Each call removes one page and says how much that was."""

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

PAGE_ROWS = 2000
PAGE_FILES = 50

_KEYS = text("""
DELETE FROM idempotency_keys WHERE (tenant, route, key) IN (
    SELECT tenant, route, key FROM idempotency_keys WHERE created_at < now() - :age
    ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")
_DELIVERIES = text("""
DELETE FROM webhook_deliveries WHERE id IN (
    SELECT id FROM webhook_deliveries WHERE created_at < now() - :age AND state <> 'pending'
    ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")
_FILES = text("""
DELETE FROM files WHERE id IN (
    SELECT id FROM files WHERE expires_at < now() ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED)
RETURNING id
""")
_UNKNOWN = text(
    "SELECT given.id FROM unnest(CAST(:ids AS text[])) AS given(id) LEFT JOIN files USING (id) WHERE files.id IS NULL"
)


def remove_keys(session: Session, age: timedelta) -> int:
    return session.execute(_KEYS, {"age": age, "limit": PAGE_ROWS}).rowcount  # type: ignore[attr-defined, no-any-return]


def remove_deliveries(session: Session, age: timedelta) -> int:
    return session.execute(_DELIVERIES, {"age": age, "limit": PAGE_ROWS}).rowcount  # type: ignore[attr-defined, no-any-return]


def remove_expired_files(session: Session) -> list[str]:
    """The rows alone: the bytes of the ids that it returns are to be deleted after the commit."""
    return list(session.scalars(_FILES, {"limit": PAGE_FILES}))


def without_row(session: Session, file_ids: list[str]) -> list[str]:
    """Those that no row names."""
    return list(session.scalars(_UNKNOWN, {"ids": file_ids}))
