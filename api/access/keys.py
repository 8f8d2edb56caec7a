"""`/api/v1/keys`: making, listing and revoking the keys of one's own tenant. Who may make keys of a tenant may see what
is that tenant's, so those of others are made where the database is, with `millrace keys`.
"""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, status
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.access.scopes import ADMIN
from api.context import Ctx, Tenant, page
from core.access import DEFAULT_SCOPES, Limits, Scope
from core.job import MAX_PRIORITY, MIN_PRIORITY
from db.access import keys
from db.access.keys import KeyState, NewKey
from db.tables import ApiKeyRow

router = APIRouter(prefix="/api/v1/keys", tags=["operations"])

PAGE_KEYS, MOST_KEYS = 100, 1000
LONGEST_SECONDS = 99_999 * 86_400
LARGEST_LIMIT = 2**31 - 1

Limit = Annotated[int | None, Field(ge=1, le=LARGEST_LIMIT)]

_EXAMPLE: JsonDict = {
    "id": "key_0a1b2c3d4e5f60718293a4b5",
    "object": "key",
    "prefix": "mr_Jx0r5Qk",
    "name": "ci",
    "tenant": "build",
    "scopes": ["read", "submit"],
    "state": "valid",
    "max_priority": 3,
    "requests_per_minute": 600,
    "tokens_per_minute": None,
    "concurrent_jobs": 50,
    "created_at": "2026-11-25T10:00:00Z",
    "expires_at": "2027-02-23T10:00:00Z",
    "last_used_at": None,
    "revoked_at": None,
}


class KeyBody(BaseModel):
    """Limits that are left out do not limit."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"name": "ci", "scopes": ["submit"], "expires_after_seconds": 7_776_000}},
    )

    name: str = Field(
        min_length=1, max_length=200, pattern=r"^[^\x00]+$", description="For whom or what, to know it again."
    )
    scopes: list[Scope] = Field(sorted(DEFAULT_SCOPES), min_length=1, description="None contains another.")
    expires_after_seconds: int | None = Field(None, ge=1, le=LONGEST_SECONDS, description="Never, where left out.")
    max_priority: int = Field(
        MAX_PRIORITY, ge=MIN_PRIORITY, le=MAX_PRIORITY, description="Highest priority of its jobs."
    )
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    concurrent_jobs: Limit = None


class ShownKey(BaseModel):
    """prefix: the beginning of the key, to know it again. last_used_at: to the minute."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    object: Literal["key"] = "key"
    prefix: str
    name: str
    tenant: str
    scopes: list[Scope]
    state: KeyState
    max_priority: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_jobs: int | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class MadeKey(ShownKey):
    """key: what clients send; no later answer shows it."""

    model_config = ConfigDict(
        json_schema_extra={"example": {**_EXAMPLE, "key": "mr_Jx0r5QkP3nXb0c6W1q2T8yU4vR7sZ9aLdEfGhIjKlMn"}}
    )

    key: str


class KeyPage(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "object": "list",
                "data": [_EXAMPLE],
                "first_id": _EXAMPLE["id"],
                "last_id": _EXAMPLE["id"],
                "has_more": False,
            }
        }
    )

    object: Literal["list"] = "list"
    data: list[ShownKey]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.post("", status_code=status.HTTP_201_CREATED, summary="Make a key", dependencies=[ADMIN])
def create_key(context: Ctx, tenant: Tenant, body: KeyBody) -> MadeKey:
    """Of one's own tenant. The answer alone shows the key itself; only its hash is kept."""
    lifetime = body.expires_after_seconds
    new = NewKey(
        name=body.name,
        tenant=tenant,
        scopes=frozenset(body.scopes),
        expires_after=None if lifetime is None else timedelta(seconds=lifetime),
        max_priority=body.max_priority,
        limits=Limits(body.requests_per_minute, body.tokens_per_minute, body.concurrent_jobs),
    )
    with context.database.begin() as session:
        row, key = keys.create(session, new)
        return MadeKey(**_shown(row, keys.now(session)).model_dump(), key=key)


@router.get("", summary="List keys, oldest first", dependencies=[ADMIN])
def list_keys(
    context: Ctx,
    tenant: Tenant,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_KEYS)] = PAGE_KEYS,
) -> KeyPage:
    """Of one's own tenant, those that have ended included. `after`: the `last_id` of the page before."""
    with context.database.begin() as session:
        rows = keys.list_keys(session, tenant=tenant, after=after, limit=limit + 1)
        now = keys.now(session)
    return KeyPage.model_validate(page([_shown(row, now).model_dump() for row in rows], limit))


@router.delete("/{key_id}", summary="Revoke a key", dependencies=[ADMIN])
def revoke_key(context: Ctx, tenant: Tenant, key_id: str) -> ShownKey:
    """It opens nothing more within seconds, and stays on the list. Revoking twice keeps the first time."""
    with context.database.begin() as session:
        row = keys.revoke(session, key_id, tenant=tenant)
        shown = _shown(row, keys.now(session))
    context.keys.forget()
    return shown


def _shown(row: ApiKeyRow, now: datetime) -> ShownKey:
    return ShownKey(
        id=row.public_id,
        prefix=row.prefix,
        name=row.name,
        tenant=row.tenant,
        scopes=[Scope(scope) for scope in row.scopes],
        state=keys.state_of(row, now),
        max_priority=row.max_priority,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrent_jobs=row.concurrent_jobs,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
