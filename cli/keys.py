"""`millrace keys create|ls|revoke|limit`: who may use the API. Works on the database itself, so it needs no key:
whoever reaches the database may make one.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console

from cli.local.postgresql import running_url
from cli.table import print_table
from core.access import DEFAULT_SCOPES, Limits, Scope
from core.errors import ConfigurationError, InvalidRequest, Unavailable
from core.settings import Settings
from db.access import keys
from db.access.keys import NewKey
from db.connection import Database
from db.tables import ApiKeyRow
from workers.instance import Instance

_AGE = re.compile(r"([1-9]\d{0,4})([hd])")
COLUMNS = ("id", "prefix", "name", "tenant", "scopes", "limits", "state", "created", "expires", "last used")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line says about a new key."""

    name: str
    tenant: str
    scopes: Sequence[Scope]
    expires: str | None
    max_priority: int
    limits: Limits


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database of the settings, or the embedded one of a Millrace that runs here. Raises ConfigurationError."""
    url = settings.database_url or running_url(Instance.of(settings))
    if url is None:
        raise ConfigurationError(
            f"no Millrace runs on {settings.data_path}: start it with `millrace up`, or set MILLRACE_DATABASE_URL"
        )
    database = Database(url, pool_size=1)
    try:
        database.check()
        yield database
    except Unavailable as error:
        raise Unavailable(f"cannot reach the database: {error.message}") from error
    finally:
        database.close()


def create(settings: Settings, wanted: Wanted, *, as_json: bool) -> None:
    """Prints the key, which is shown this once."""
    new = NewKey(
        name=wanted.name,
        tenant=wanted.tenant,
        scopes=frozenset(wanted.scopes or DEFAULT_SCOPES),
        expires_after=None if wanted.expires is None else parse_age(wanted.expires),
        max_priority=wanted.max_priority,
        limits=wanted.limits,
    )
    with opened(settings) as database, database.begin() as session:
        row, key = keys.create(session, new)
        shown = {**key_object(row, keys.now(session)), "key": key}
    if as_json:
        _print_json(shown)
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"Key {row.public_id} for tenant {row.tenant}; it is not shown again:", markup=False)
    Console(highlight=False, soft_wrap=True).print(key, markup=False)


def parse_age(text: str) -> timedelta:
    """`90d`, `12h`. Raises InvalidRequest."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"expected a time such as `90d` or `12h`, got {text!r}", param="expires")
    return timedelta(**{"days" if match[2] == "d" else "hours": int(match[1])})


def list_keys(settings: Settings, tenant: str | None, *, as_json: bool) -> None:
    with opened(settings) as database, database.begin() as session:
        now = keys.now(session)
        objects = [key_object(row, now) for row in keys.list_keys(session, tenant=tenant)]
    if as_json:
        _print_json(objects)
        return
    print_table(COLUMNS, map(_line, objects))


def revoke(settings: Settings, name: str, *, as_json: bool) -> None:
    """Raises NotFound."""
    with opened(settings) as database, database.begin() as session:
        shown = key_object(keys.revoke(session, name), keys.now(session))
    if as_json:
        _print_json(shown)
    else:
        Console(highlight=False).print(f"{shown['id']} ({shown['name']}) is revoked", markup=False)


def limit_tenant(settings: Settings, tenant: str, limits: Limits) -> None:
    with opened(settings) as database, database.begin() as session:
        keys.set_tenant_limits(session, tenant, limits)
    Console(highlight=False).print(f"tenant {tenant}: {limits_text(limits)}", markup=False)


def key_object(row: ApiKeyRow, now: datetime) -> dict[str, Any]:
    """now: of the database, by whose clock keys expire."""
    return {
        "id": row.public_id,
        "prefix": row.prefix,
        "name": row.name,
        "tenant": row.tenant,
        "scopes": row.scopes,
        "max_priority": row.max_priority,
        "requests_per_minute": row.requests_per_minute,
        "tokens_per_minute": row.tokens_per_minute,
        "concurrent_jobs": row.concurrent_jobs,
        "state": keys.state_of(row, now),
        "created_at": row.created_at.isoformat(),
        "expires_at": row.expires_at and row.expires_at.isoformat(),
        "last_used_at": row.last_used_at and row.last_used_at.isoformat(),
        "revoked_at": row.revoked_at and row.revoked_at.isoformat(),
    }


def limits_text(limits: Limits) -> str:
    parts = {
        "requests/min": limits.requests_per_minute,
        "tokens/min": limits.tokens_per_minute,
        "jobs": limits.concurrent_jobs,
    }
    return ", ".join(f"{value:,} {unit}" for unit, value in parts.items() if value is not None) or "no limit"


def _line(shown: dict[str, Any]) -> list[str]:
    limits = Limits(shown["requests_per_minute"], shown["tokens_per_minute"], shown["concurrent_jobs"])
    moments = [shown[name] for name in ("created_at", "expires_at", "last_used_at")]
    return [
        *(shown[name] for name in ("id", "prefix", "name", "tenant")),
        " ".join(shown["scopes"]),
        limits_text(limits),
        shown["state"],
        *("-" if moment is None else moment[:16].replace("T", " ") for moment in moments),
    ]


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
