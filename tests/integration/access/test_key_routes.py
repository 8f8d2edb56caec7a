"""`/api/v1/keys`: what `millrace keys` does, over HTTP, for one's own tenant."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_api
from core.access import Limits, Scope, hash_key
from db.access import keys
from tests.integration.access.keys import bearer, make_key
from tests.world import World, changed

KEYS = "/api/v1/keys"


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    """Of an administrator of the tenant `lab`."""
    api = create_api(changed(world.services.settings, auth="required"))
    headers = bearer(make_key(world, Scope.ADMIN, tenant="lab"))
    with TestClient(api, base_url="http://127.0.0.1", raise_server_exceptions=False, headers=headers) as client:
        yield client


def test_a_key_is_shown_once_and_kept_as_a_hash(world: World, client: TestClient) -> None:
    # When
    answer = client.post(KEYS, json={"name": "ci", "expires_after_seconds": 3600})
    # Then
    assert answer.status_code == 201
    made = answer.json()
    key = made.pop("key")
    assert key.startswith(made["prefix"])
    assert (made["tenant"], made["scopes"], made["state"]) == ("lab", ["read", "submit"], "valid")
    assert made in client.get(KEYS).json()["data"]
    assert key not in client.get(KEYS).text
    with world.database.begin() as session:
        kept = session.execute(text("SELECT string_agg(api_keys::text, ' ') FROM api_keys")).scalar_one()
    assert key not in kept
    assert client.get("/v1/files", headers=bearer(key)).status_code == 200


def test_what_is_asked_of_a_key_is_what_it_gets(world: World, client: TestClient) -> None:
    # When
    limits = {"requests_per_minute": 60, "tokens_per_minute": 9000, "concurrent_jobs": 4}
    made = client.post(KEYS, json={"name": "ci", "scopes": ["read", "admin"], "max_priority": 3, **limits}).json()
    # Then
    with world.database.begin() as session:
        identity = keys.identify(session, hash_key(made["key"]))
    assert identity is not None
    assert (identity.tenant, identity.scopes) == ("lab", frozenset({Scope.READ, Scope.ADMIN}))
    assert (identity.max_priority, identity.limits) == (3, Limits(60, 9000, 4))
    assert made["expires_at"] is None


def test_a_revoked_key_opens_nothing_and_stays_on_the_list(client: TestClient) -> None:
    # Given a key that this process knows
    made = client.post(KEYS, json={"name": "ci"}).json()
    assert client.get("/v1/files", headers=bearer(made["key"])).status_code == 200
    # When
    revoked = client.delete(f"{KEYS}/{made['id']}").json()
    again = client.delete(f"{KEYS}/{made['id']}").json()
    # Then
    assert client.get("/v1/files", headers=bearer(made["key"])).status_code == 401
    assert revoked["state"] == "revoked"
    assert again["revoked_at"] == revoked["revoked_at"]
    assert revoked in client.get(KEYS).json()["data"]


def test_the_keys_of_another_tenant_are_not_there(world: World, client: TestClient) -> None:
    # Given
    make_key(world, tenant="other")
    with world.database.begin() as session:
        (theirs,) = keys.list_keys(session, tenant="other")
    # When / Then
    assert {key["tenant"] for key in client.get(KEYS).json()["data"]} == {"lab"}
    for name in (theirs.public_id, theirs.prefix):
        assert client.delete(f"{KEYS}/{name}").status_code == 404
        assert client.get(KEYS, params={"after": name}).status_code == 404
    assert client.post(KEYS, json={"name": "x", "tenant": "other"}).status_code == 400
    with world.database.begin() as session:
        (left,) = keys.list_keys(session, tenant="other")
    assert left.revoked_at is None


def test_keys_come_page_by_page(client: TestClient) -> None:
    # Given
    for name in ("two", "three"):
        client.post(KEYS, json={"name": name})
    # When
    first = client.get(KEYS, params={"limit": 2}).json()
    rest = client.get(KEYS, params={"limit": 2, "after": first["last_id"]}).json()
    # Then
    assert [key["name"] for key in first["data"] + rest["data"]] == ["test", "two", "three"]
    assert (first["has_more"], rest["has_more"]) == (True, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\0b"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "expires_after_seconds": 0},
        {"name": "x", "requests_per_minute": 2**31},
        {"name": "x", "max_priority": 10},
    ],
)
def test_what_no_key_can_have_is_refused(client: TestClient, wrong: dict[str, object]) -> None:
    assert client.post(KEYS, json=wrong).status_code == 400
