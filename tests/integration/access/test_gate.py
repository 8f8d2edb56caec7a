"""The gate: who needs a key where, pages for people at browsers, and what other sites may not have a browser do."""

import asyncio
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.access import keyring
from api.app import create_api
from core.access import Scope
from db.access import keys
from tests.integration.access.keys import WRONG_KEY, bearer, make_key
from tests.world import World, changed

PAGE = {"accept": "text/html,*/*"}


def client_of(world: World, **settings: object) -> TestClient:
    app = create_api(changed(world.services.settings, **settings))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture
def local(world: World) -> Iterator[TestClient]:
    with client_of(world, auth="local") as client:
        yield client


@pytest.fixture
def guarded(world: World) -> Iterator[TestClient]:
    with client_of(world, auth="required") as client:
        yield client


def test_on_this_machine_no_key_and_any_placeholder_is_the_default_tenant(world: World, local: TestClient) -> None:
    # Given
    world.upload(b"{}\n")
    # When / Then
    for key in (None, "unused"):
        assert len(local.get("/v1/files", headers=bearer(key)).json()["data"]) == 1


def test_a_real_key_counts_on_this_machine_too(world: World, local: TestClient) -> None:
    # Given
    world.upload(b"{}\n")
    # When / Then
    assert local.get("/v1/files", headers=bearer(make_key(world, tenant="other"))).json()["data"] == []
    assert local.get("/v1/files", headers=bearer(WRONG_KEY)).status_code == 401


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_whoever_comes_through_a_proxy_needs_a_key(world: World, local: TestClient, header: str) -> None:
    assert local.get("/v1/files", headers={header: "10.0.0.1"}).status_code == 401
    assert local.get("/v1/files", headers={header: "10.0.0.1", **bearer("unused")}).status_code == 401
    assert local.get("/v1/files", headers={header: "10.0.0.1", **bearer(make_key(world))}).status_code == 200


@pytest.mark.parametrize("auth", ["auto", "required"])
def test_unless_told_otherwise_a_key_is_needed(world: World, auth: str) -> None:
    with client_of(world, auth=auth) as client:
        assert client.get("/v1/files").status_code == 401
        assert client.get("/v1/files", headers=bearer("unused")).status_code == 401
        assert client.get("/v1/files", headers=bearer(make_key(world))).status_code == 200


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}])
def test_a_page_of_another_site_sends_nothing(world: World, local: TestClient, headers: dict[str, str]) -> None:
    # When
    upload = {"files": {"file": ("a", b"{}")}, "data": {"purpose": "batch"}}
    theirs = local.post("/v1/files", **upload, headers=headers)  # type: ignore[arg-type]
    program = local.post("/v1/files", **upload, headers={**headers, **bearer(make_key(world))})  # type: ignore[arg-type]
    own = local.post("/v1/files", **upload, headers={"origin": "http://127.0.0.1"})  # type: ignore[arg-type]
    # Then
    assert (theirs.status_code, program.status_code, own.status_code) == (403, 200, 200)


def test_a_person_signs_in_and_out(world: World, guarded: TestClient) -> None:
    # When: at the page
    sent = guarded.get("/docs", headers=PAGE)
    # Then
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=/docs")
    # When: with a key
    entered = guarded.post("/login?next=/docs", data={"key": make_key(world)})
    # Then
    assert (entered.status_code, entered.headers["location"]) == (303, "/docs")
    cookie = entered.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict"))
    for path in ("/", "/docs", "/openapi.json"):
        assert guarded.get(path, headers=PAGE).status_code == 200
    # When: out
    guarded.post("/logout")
    # Then
    assert guarded.get("/", headers=PAGE).status_code == 303


def test_a_wrong_key_does_not_sign_in_and_leads_nowhere_else(world: World, guarded: TestClient) -> None:
    # When
    refused = guarded.post("/login", data={"key": WRONG_KEY})
    elsewhere = guarded.post("/login?next=//evil.example", data={"key": make_key(world)})
    # Then
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers
    assert elsewhere.headers["location"] == "/"


def test_the_pages_load_nothing_from_elsewhere(world: World, local: TestClient) -> None:
    for path in ("/", "/docs", "/login"):
        page = local.get(path).text
        assert "<script" not in page
        assert "//cdn" not in page
    assert "/v1/chat/completions" in local.get("/docs").text


def test_a_revoked_key_is_out_within_seconds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setattr(keyring, "FRESH_SECONDS", 0.0)
    key = make_key(world)
    with client_of(world, auth="required") as client:
        assert client.get("/v1/files", headers=bearer(key)).status_code == 200
        # When
        with world.database.begin() as session:
            keys.revoke(session, key[:10])
        # Then
        assert client.get("/v1/files", headers=bearer(key)).status_code == 401


def test_a_key_that_was_seen_lately_is_not_looked_up_again(world: World, guarded: TestClient) -> None:
    # Given
    key = make_key(world)
    assert guarded.get("/v1/models", headers=bearer(key)).status_code == 200
    # When: the row is gone, and nobody looks
    with world.database.begin() as session:
        session.execute(text("DELETE FROM api_keys"))
    # Then
    assert guarded.get("/v1/models", headers=bearer(key)).status_code == 200


def test_the_use_of_a_key_is_noted_and_the_key_itself_is_nowhere(world: World, guarded: TestClient) -> None:
    # Given
    key = make_key(world, Scope.READ)
    # When
    guarded.get("/v1/models", headers=bearer(key))
    # Then
    with world.database.begin() as session:
        (row,) = keys.list_keys(session)
        kept = session.execute(text("SELECT api_keys::text FROM api_keys")).scalar_one()
    assert row.last_used_at is not None
    assert (row.prefix, row.scopes) == (key[:10], ["read"])
    assert key[11:] not in kept


def test_a_refused_upload_is_not_read(world: World) -> None:
    # Given
    app = create_api(changed(world.services.settings, auth="required"))
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        pytest.fail("the body was read")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "query_string": b"", "headers": headers}
    # When
    asyncio.run(app(scope, receive, send))
    # Then
    assert sent[0]["status"] == 401


def test_a_key_that_only_reads_sees_nothing_of_others(world: World, guarded: TestClient) -> None:
    # Given work of another tenant
    world.start_job(25, tenant="other")
    reader, admin = bearer(make_key(world, Scope.READ)), bearer(make_key(world))
    # When / Then
    for key, waiting, messages in ((reader, 0, type(None)), (admin, 3, int)):
        queues = guarded.get("/api/v1/queues", headers=key).json()["data"]
        assert sum(queue["num_waiting_chunks"] for queue in queues) == waiting
        assert {type(queue["num_messages"]) for queue in queues} == {messages}
    shown = [guarded.get("/", headers={**PAGE, **key}).text for key in (reader, admin)]
    assert ["cpu@node" in page for page in shown] == [False, True]
    assert ['class="number">25</td>' in page for page in shown] == [False, True]
    assert guarded.get("/metrics", headers=reader).status_code == 403


def test_the_page_says_what_whoever_reads_it_can_use(world: World) -> None:
    for base_url, auth, links_flower, sample in (
        ("http://127.0.0.1", "local", True, "unused"),
        ("http://llm.example", "required", False, "mr_…"),
    ):
        app = create_api(changed(world.services.settings, auth=auth, trusted_hosts="llm.example"))
        with TestClient(app, base_url=base_url) as client:
            page = client.get("/", headers={**PAGE, **(bearer(make_key(world)) if auth == "required" else {})}).text
        assert (">Flower</a>" in page, f'api_key="{sample}"' in page) == (links_flower, True)
