"""Idempotency keys: which object a key of a tenant made, so that the same call twice makes one.

`recall` and `remember` belong to the transaction that inserts the object: a crash leaves neither or both, and of two
calls at once the second waits in `recall` until the first has ended, then finds what it made. Rows are removed by
the retention of `tasks.upkeep`.
"""

from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from core.errors import Conflict
from db.tables import IdempotencyKeyRow

LOCKS = 0x69646D  # first half of the advisory locks' names, their second is a hash of the key
_LOCK = text("SELECT pg_advisory_xact_lock(:locks, hashtext(:name))")

_REMEMBER = text("""
INSERT INTO idempotency_keys (tenant, route, key, body_hash, object_id)
VALUES (:tenant, :route, :key, :body_hash, :object_id)
ON CONFLICT (tenant, route, key) DO UPDATE SET object_id = excluded.object_id, created_at = now()
""")


@dataclass(frozen=True, slots=True)
class Key:
    """One call: `body_hash` tells another body under the same key apart."""

    tenant: str
    route: str
    key: str
    body_hash: bytes


def recall(session: Session, key: Key | None) -> str | None:
    """The id of the object that this call made before; None when it is to be made now, or when the call has no key.
    Until the transaction ends, nobody else gets an answer for the key. Raises Conflict when the body is another."""
    if key is None:
        return None
    name = "\n".join((key.tenant, key.route, key.key))
    session.execute(_LOCK, {"locks": LOCKS, "name": name})
    found = session.execute(
        select(IdempotencyKeyRow.body_hash, IdempotencyKeyRow.object_id).where(
            IdempotencyKeyRow.tenant == key.tenant,
            IdempotencyKeyRow.route == key.route,
            IdempotencyKeyRow.key == key.key,
        )
    ).one_or_none()
    if found is None:
        return None
    if found.body_hash != key.body_hash:
        raise Conflict(
            f"Idempotency-Key {key.key!r} came with another body before; give every new request a key of its own",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    return str(found.object_id)


def remember(session: Session, key: Key | None, object_id: str) -> None:
    """Notes what the call made, in the place of what it made before. Nothing without a key."""
    if key is not None:
        session.execute(
            _REMEMBER,
            {
                "tenant": key.tenant,
                "route": key.route,
                "key": key.key,
                "body_hash": key.body_hash,
                "object_id": object_id,
            },
        )
