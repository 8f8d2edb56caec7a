"""Every route of the application, with every kind of key: what it answers follows from the scope it declares."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.access.scopes import DeclaredRoute, declared_routes, public_paths
from api.app import create_api
from core.access import Scope
from core.openai.completion import CHAT_ENDPOINT
from core.settings import Settings
from db import jobs
from db.jobs import NewOnlineRequest
from db.tables import JobRow, ResponseRow, WebhookEndpointRow
from db.webhooks import endpoints
from tests.artifacts import make_artifact
from tests.integration.access.keys import WRONG_KEY, another_key, bearer, expired_key, make_key, revoked_key
from tests.world import MODEL, World, batch_file, changed

UNAUTHENTICATED, FORBIDDEN, NOT_FOUND = 401, 403, 404
ROUTES = list(declared_routes(create_api(Settings(database_url="postgresql://"))))


def online_job(world: World) -> JobRow:
    request = NewOnlineRequest(endpoint=CHAT_ENDPOINT, model=MODEL, body="{}", expires_after=timedelta(hours=1))
    with world.database.begin() as session:
        return jobs.create_online(session, request)


def stored_response(world: World) -> str:
    job = online_job(world)
    row = ResponseRow(
        id="resp_1",
        tenant=job.tenant,
        job_id=job.id,
        is_stored=True,
        has_tools=False,
        is_streamed=True,
        items="[]",
        echo="{}",
    )
    with world.database.begin() as session:
        session.merge(row)
    return row.id


def webhook_endpoint(world: World) -> str:
    row = WebhookEndpointRow(
        id=endpoints.new_endpoint_id(),
        tenant="default",
        name="hook",
        url="https://hooks.example",
        event_types=[],
        secret="whsec_none",
    )
    with world.database.begin() as session:
        return endpoints.add(session, row).id


# One of another tenant's for every name that stands in a path.
OTHERS: dict[str, Callable[[World], str]] = {
    "file_id": lambda world: world.upload(batch_file(range(2))),
    "batch_id": lambda world: world.start_job(2).public_id,
    "job_id": lambda world: world.start_job(2).public_id,
    "answer_id": lambda world: f"chatcmpl-{online_job(world).public_id}-0",
    "response_id": stored_response,
    "webhook_endpoint_id": webhook_endpoint,
    "key_id": another_key,
    "artifact_id": lambda world: make_artifact(world).id,
}
# What a route must be sent before it looks for what it is asked about.
BODIES: dict[str, dict[str, object]] = {
    "PATCH /api/v1/jobs/{job_id}": {"priority": 1},
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}": {"name": "hook"},
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/test": {"event_type": "batch.completed"},
}
SHARED = frozenset({"name"})  # models are everybody's


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    app = create_api(changed(world.services.settings, auth="required"))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def ask(client: TestClient, route: DeclaredRoute, method: str, key: str | None, **values: str) -> int:
    """The status; every parameter of the path without a value is a made-up one."""
    path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: values.get(match[1], "made-up"), route.path)
    body = BODIES.get(f"{method} {route.path}")
    response = client.request(method, path, headers=bearer(key), json=body)
    if response.status_code == UNAUTHENTICATED and route.scope is not None:
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
    return response.status_code


def all_operations() -> Iterator[tuple[DeclaredRoute, str]]:
    for route in ROUTES:
        for method in sorted(route.methods - {"HEAD", "OPTIONS"}):
            yield route, method


@pytest.mark.parametrize("kind", ["none", "wrong", "expired", "revoked"])
def test_strangers_get_nothing_but_what_is_open_to_all(world: World, client: TestClient, kind: str) -> None:
    # Given
    makers: dict[str, Callable[[World], str | None]] = {
        "none": lambda world: None,
        "wrong": lambda world: WRONG_KEY,
        "expired": expired_key,
        "revoked": revoked_key,
    }
    key = makers[kind](world)
    # When
    statuses = {(route, method): ask(client, route, method, key) for route, method in all_operations()}
    # Then
    wrong = {
        f"{method} {route.path}": status
        for (route, method), status in statuses.items()
        if (status == UNAUTHENTICATED) == (route.scope is None)
    }
    assert wrong == {}


@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_opens_the_routes_of_its_scope_and_no_others(world: World, client: TestClient, scope: Scope) -> None:
    # Given
    key = make_key(world, scope)
    # When
    statuses = {(route, method): ask(client, route, method, key) for route, method in all_operations()}
    # Then
    wrong = {
        f"{method} {route.path}": status
        for (route, method), status in statuses.items()
        if status == UNAUTHENTICATED or (status == FORBIDDEN) != (route.scope not in (scope, None)) or status >= 500
    }
    assert wrong == {}


def test_what_is_another_tenants_is_not_there(world: World, client: TestClient) -> None:
    # Given
    key = make_key(world, tenant="other")
    taking = [(route, method) for route, method in all_operations() if "{" in route.path]
    # When
    statuses = {}
    for route, method in taking:
        names = set(re.findall(r"\{(\w+)", route.path)) - SHARED
        if names:
            values = {name: OTHERS[name](world) for name in names}
            statuses[f"{method} {route.path}"] = ask(client, route, method, key, **values)
    # Then
    assert statuses
    assert {name: status for name, status in statuses.items() if status != NOT_FOUND} == {}


def test_a_batch_of_another_tenants_file_is_not_made(world: World, client: TestClient) -> None:
    # Given
    body = {"input_file_id": world.upload(batch_file(range(2))), "endpoint": "/v1/chat/completions"}
    # When
    theirs = client.post("/v1/batches", json=body, headers=bearer(make_key(world, tenant="other")))
    ours = client.post("/v1/batches", json=body, headers=bearer(make_key(world)))
    # Then
    assert (theirs.status_code, ours.status_code) == (404, 200)


def test_lists_show_the_tenants_own(world: World, client: TestClient) -> None:
    # Given
    world.start_job(2)
    lists = [route.path for route in ROUTES if "GET" in route.methods and route.path in ("/v1/files", "/v1/batches")]
    # When
    theirs = [client.get(path, headers=bearer(make_key(world, tenant="other"))).json()["data"] for path in lists]
    ours = [client.get(path, headers=bearer(make_key(world))).json()["data"] for path in lists]
    # Then
    assert theirs == [[], []]
    assert [len(data) for data in ours] == [1, 1]


# Each list, and what stands in it.
LISTS = {
    "/v1/files": "file_id",
    "/v1/batches": "batch_id",
    "/v1/webhook_endpoints": "webhook_endpoint_id",
    "/api/v1/jobs": "job_id",
    "/api/v1/artifacts": "artifact_id",
    "/api/v1/keys": "key_id",
}


@pytest.mark.parametrize("path", LISTS)
def test_a_list_neither_shows_what_is_anothers_nor_goes_on_behind_it(
    world: World, client: TestClient, path: str
) -> None:
    # Given
    name = OTHERS[LISTS[path]](world)
    theirs, ours = bearer(make_key(world, tenant="other")), bearer(make_key(world))
    # When / Then
    assert name not in client.get(path, headers=theirs).text
    assert name in client.get(path, headers=ours).text
    assert client.get(path, params={"after": name}, headers=theirs).status_code == NOT_FOUND
    assert client.get(path, params={"after": name}, headers=ours).status_code == 200


def test_a_body_that_names_what_is_anothers_finds_nothing(world: World, client: TestClient) -> None:
    # Given
    theirs = bearer(make_key(world, tenant="other"))
    file_id, response_id = world.upload(batch_file(range(2))), stored_response(world)
    bodies = {
        "/api/v1/jobs": {"kind": "inference", "input_file_id": file_id},
        "/v1/batches": {"input_file_id": file_id, "endpoint": CHAT_ENDPOINT, "completion_window": "24h"},
        "/v1/responses": {"model": MODEL, "input": "hi", "previous_response_id": response_id},
    }
    # When
    statuses = {path: client.post(path, json=body, headers=theirs).status_code for path, body in bodies.items()}
    # Then
    assert set(statuses.values()) == {NOT_FOUND}, statuses


def test_few_paths_are_open_and_none_of_them_tells_anything(client: TestClient) -> None:
    # Given
    app = client.app
    assert isinstance(app, FastAPI)
    # When / Then
    assert public_paths(app) == {"/health", "/healthz", "/readyz", "/login", "/logout"}
    assert (
        client.get("/health").json()
        == client.get("/healthz").json()
        == client.get("/readyz").json()
        == {"status": "ok"}
    )


def test_strangers_do_not_learn_which_routes_there_are(client: TestClient) -> None:
    assert client.get("/v1/nothing").status_code == UNAUTHENTICATED
    assert client.get("/openapi.json").status_code == UNAUTHENTICATED


def test_an_application_with_a_route_that_declares_nothing_is_not_built() -> None:
    # Given
    app = FastAPI(openapi_url=None)
    app.add_api_route("/open", lambda: None)
    # When / Then
    with pytest.raises(ValueError, match=r"/open: expected one of READ"):
        public_paths(app)
