"""API keys as rows: making, finding, listing, revoking. A key itself is never stored, only its hash and its beginning;
whether one has expired is decided by the database's clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, and_, func, or_, select, true, update
from sqlalchemy.orm import Session

from core.access import ALL_SCOPES, UNLIMITED, Identity, Limits, Scope, hash_key, key_prefix, new_key
from core.errors import NotFound
from core.job import DEFAULT_TENANT, MAX_PRIORITY
from db.jobs import new_public_id
from db.tables import ApiKeyRow, TenantLimitRow

TOUCH_INTERVAL = timedelta(minutes=1)


class KeyState(StrEnum):
    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    name: str
    tenant: str = DEFAULT_TENANT
    scopes: frozenset[Scope] = ALL_SCOPES
    expires_after: timedelta | None = None
    max_priority: int = MAX_PRIORITY
    limits: Limits = UNLIMITED


def create(session: Session, new: NewKey) -> tuple[ApiKeyRow, str]:
    """The row, and the key itself, which nobody can learn again."""
    key = new_key()
    row = ApiKeyRow(
        public_id=new_public_id("key"),
        tenant=new.tenant,
        name=new.name,
        prefix=key_prefix(key),
        hash=hash_key(key),
        scopes=sorted(new.scopes),
        max_priority=new.max_priority,
        requests_per_minute=new.limits.requests_per_minute,
        tokens_per_minute=new.limits.tokens_per_minute,
        concurrent_jobs=new.limits.concurrent_jobs,
        expires_at=None if new.expires_after is None else func.now() + new.expires_after,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, key


def identify(session: Session, digest: bytes) -> Identity | None:
    """Whose key has this hash; None when nobody's, or when it has expired or was revoked."""
    found = session.execute(
        select(ApiKeyRow, TenantLimitRow)
        .outerjoin(TenantLimitRow, TenantLimitRow.tenant == ApiKeyRow.tenant)
        .where(ApiKeyRow.hash == digest, _usable())
    ).one_or_none()
    if found is None:
        return None
    key, tenant = found
    return Identity(
        tenant=key.tenant,
        scopes=frozenset(Scope(scope) for scope in key.scopes),
        key_id=key.id,
        max_priority=key.max_priority,
        limits=_limits(key),
        tenant_limits=UNLIMITED if tenant is None else _limits(tenant),
    )


def _limits(row: ApiKeyRow | TenantLimitRow) -> Limits:
    return Limits(row.requests_per_minute, row.tokens_per_minute, row.concurrent_jobs)


def _usable() -> ColumnElement[bool]:
    is_current = or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now())
    return and_(ApiKeyRow.revoked_at.is_(None), is_current)


def touch(session: Session, key_id: int) -> None:
    """Notes that the key was used, at most once a minute."""
    session.execute(
        update(ApiKeyRow)
        .where(
            ApiKeyRow.id == key_id,
            or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < func.now() - TOUCH_INTERVAL),
        )
        .values(last_used_at=func.now())
    )


def list_keys(
    session: Session, *, tenant: str | None = None, after: str | None = None, limit: int | None = None
) -> Sequence[ApiKeyRow]:
    """Oldest first; of all tenants where none is named. Raises NotFound for an unknown `after`."""
    query = select(ApiKeyRow).where(_is_of(tenant))
    if after is not None:
        last = session.scalar(query.where(_is_called(after)))
        if last is None:
            raise _unknown(after)
        query = query.where(ApiKeyRow.id > last.id)
    return session.scalars(query.order_by(ApiKeyRow.id).limit(limit)).all()


def revoke(session: Session, name: str, *, tenant: str | None = None) -> ApiKeyRow:
    """`name`: the id of a key, or its visible beginning; of whatever tenant where none is named. Revoking twice keeps
    the first time. Raises NotFound."""
    row: ApiKeyRow | None = session.scalar(
        update(ApiKeyRow)
        .where(_is_of(tenant), _is_called(name))
        .values(revoked_at=func.coalesce(ApiKeyRow.revoked_at, func.now()))
        .returning(ApiKeyRow)
    )
    if row is None:
        raise _unknown(name)
    return row


def _is_of(tenant: str | None) -> ColumnElement[bool]:
    return true() if tenant is None else ApiKeyRow.tenant == tenant


def _is_called(name: str) -> ColumnElement[bool]:
    return or_(ApiKeyRow.public_id == name, ApiKeyRow.prefix == name)


def _unknown(name: str) -> NotFound:
    return NotFound(f"no key {name!r}: expected an id or a prefix that `millrace keys ls` shows", param="key_id")


def now(session: Session) -> datetime:
    """The clock by which keys expire."""
    moment: datetime = session.execute(select(func.now())).scalar_one()
    return moment


def state_of(row: ApiKeyRow, now: datetime) -> KeyState:
    if row.revoked_at is not None:
        return KeyState.REVOKED
    is_over = row.expires_at is not None and row.expires_at <= now
    return KeyState.EXPIRED if is_over else KeyState.VALID


def has_usable(session: Session) -> bool:
    return session.scalar(select(ApiKeyRow.id).where(_usable()).limit(1)) is not None


def set_tenant_limits(session: Session, tenant: str, limits: Limits) -> None:
    """Replaces what was set before, for all keys of the tenant together."""
    session.merge(
        TenantLimitRow(
            tenant=tenant,
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            concurrent_jobs=limits.concurrent_jobs,
        )
    )
