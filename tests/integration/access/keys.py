"""Keys of every kind, made in the real database, and what a client sends with them."""

from datetime import timedelta

from sqlalchemy import text

from core.access import Scope
from db.access import keys
from db.access.keys import NewKey
from tests.world import World

WRONG_KEY = "mr_" + "x" * 43


def make_key(world: World, *scopes: Scope, tenant: str = "default", **values: object) -> str:
    """A key with these scopes; all of them where none is named."""
    new = NewKey(name="test", tenant=tenant, scopes=frozenset(scopes or Scope), **values)  # type: ignore[arg-type]
    with world.database.begin() as session:
        return keys.create(session, new)[1]


def another_key(world: World) -> str:
    """The id of a key that nobody uses."""
    with world.database.begin() as session:
        return keys.create(session, NewKey(name="another"))[0].public_id


def expired_key(world: World) -> str:
    return make_key(world, expires_after=timedelta(seconds=-1))


def revoked_key(world: World) -> str:
    key = make_key(world, tenant="left")
    with world.database.begin() as session:
        session.execute(text("UPDATE api_keys SET revoked_at = now() WHERE tenant = 'left'"))
    return key


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}
