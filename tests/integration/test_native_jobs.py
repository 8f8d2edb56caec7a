"""`/api/v1/jobs` over the real servers: what it takes and refuses, lists, changes, ends and removes."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_api
from api.native import jobs as native_jobs
from api.native.bodies import AnyJob
from api.native.bodies.reading import read_job
from db import chunks
from db.chunks import Retry
from tasks.upkeep import finalizing, intake
from tests.world import MODEL, World, batch_file, failure, success

PROMPTS = {"kind": "inference", "model": MODEL, "prompts": ["one", "two", "three"], "parameters": {"max_tokens": 4}}


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    api = create_api(world.services.settings)
    with TestClient(api, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def submit(client: TestClient, **body: object) -> dict[str, object]:
    response = client.post("/api/v1/jobs", json={**PROMPTS, **body})
    assert response.status_code == 201, response.text
    job: dict[str, object] = response.json()
    return job


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_prompts_become_requests_that_can_be_claimed_at_once(client: TestClient, world: World) -> None:
    # When
    job = submit(client, priority=7, metadata={"run": "night"})
    # Then
    assert (job["state"], job["num_requests"], job["priority"]) == ("in_progress", 3, 7)
    assert job["metadata"] == {"run": "night"}
    lease = world.claim()
    assert lease is not None
    with world.database.begin() as session:
        bodies = [json.loads(request.body) for request in chunks.unfinished(session, lease)]
    assert bodies[0] == {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "one"}]}


def test_requests_keep_their_own_ids_and_parameters(client: TestClient, world: World) -> None:
    # When
    requests = [{"custom_id": "a", "body": {"prompt": "x", "max_tokens": 1}}, {"body": {"prompt": "y"}}]
    job = submit(client, prompts=None, requests=requests, endpoint="/v1/completions")
    # Then
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0), failure(1)])
    results = client.get(f"/api/v1/jobs/{job['id']}/results")
    assert [line["custom_id"] for line in lines(results.text)] == ["a", "request-1"]
    assert results.headers["x-job-state"] == "in_progress"


def test_results_come_page_by_page(client: TestClient, world: World) -> None:
    # Given
    job = submit(client)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0), failure(1), success(2)])
    # When
    first = client.get(f"/api/v1/jobs/{job['id']}/results?limit=2")
    second = client.get(f"/api/v1/jobs/{job['id']}/results?limit=2&after={first.headers['x-next-after']}")
    # Then
    assert [line["custom_id"] for line in lines(first.text + second.text)] == ["request-0", "request-1", "request-2"]
    assert "x-next-after" not in second.headers


def test_how_each_request_stands_can_be_read_with_its_tries_and_its_last_error(
    client: TestClient, world: World
) -> None:
    # Given one answered, one refused, one that is tried again, of three
    job = submit(client)
    lease = world.claim()
    assert lease is not None
    with world.database.begin() as session:
        retry = chunks.Retry(2, 1, "model_failure", "NaN in the logits", 3600.0)
        chunks.write(session, lease, [success(0), failure(1)], [retry])
    # When
    page = client.get(f"/api/v1/jobs/{job['id']}/requests?limit=2").json()
    rest = client.get(f"/api/v1/jobs/{job['id']}/requests?after={page['next_after']}").json()
    # Then
    lines = page["data"] + rest["data"]
    assert [(line["state"], line["attempt"], line["num_retries"]) for line in lines] == [
        ("succeeded", 1, 0),
        ("failed", 1, 0),
        ("retrying", None, 1),
    ]
    assert lines[2]["last_error"] == {"code": "model_failure", "message": "NaN in the logits"}
    assert lines[2]["retry_at"] is not None
    assert rest["next_after"] is None
    # When / Then
    retrying = client.get(f"/api/v1/jobs/{job['id']}/requests?state=retrying").json()["data"]
    assert [line["index"] for line in retrying] == [2]


def test_a_page_of_results_ends_where_it_has_become_large(
    client: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given answers of some 1,000 bytes, two of which are too much
    monkeypatch.setattr(native_jobs, "PAGE_BYTES", 1_500)
    job = submit(client)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(index, "x" * 1_000) for index in range(3)])
    # When
    first = client.get(f"/api/v1/jobs/{job['id']}/results")
    second = client.get(f"/api/v1/jobs/{job['id']}/results?after={first.headers['x-next-after']}")
    # Then
    assert [line["custom_id"] for line in lines(first.text)] == ["request-0", "request-1"]
    assert [line["custom_id"] for line in lines(second.text)] == ["request-2"]
    assert "x-next-after" not in second.headers


def test_a_file_is_validated_like_that_of_a_batch(client: TestClient, world: World) -> None:
    # When
    job = submit(client, prompts=None, parameters=None, input_file_id=world.upload(batch_file(range(4))))
    # Then
    assert job["state"] == "validating"
    assert intake.validate(world.services, str(job["id"]))
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["num_requests"] == 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompts": ["a"], "model": "nobody/serves-it"}, "prompts[0]"),
        ({"prompts": None, "requests": [{"body": {"messages": []}}]}, "requests[0]"),
        ({"prompts": None, "requests": [{"body": {"messages": [], "n": 2**70}}]}, "requests[0]"),
        ({"prompts": None, "requests": [{"body": {"messages": "\ud800"}}]}, "body"),
        ({"endpoint": "/v1/nowhere"}, "endpoint"),
        ({"priority": 10}, "inference.priority"),
        ({"prompts": None}, "inference"),
        ({"deadline": "2001-01-01T00:00:00Z"}, "deadline"),
    ],
)
def test_what_is_wrong_with_a_job_is_said_at_once(client: TestClient, body: dict[str, object], param: str) -> None:
    # When
    content = json.dumps({**PROMPTS, **body})
    response = client.post("/api/v1/jobs", content=content, headers={"content-type": "application/json"})
    # Then
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert client.get("/api/v1/jobs").json()["data"] == []


def test_a_body_is_read_beside_the_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    places: list[bool] = []

    def read(body: bytes) -> AnyJob:
        places.append(has_loop())
        return read_job(body)

    monkeypatch.setattr(native_jobs, "read_job", read)
    # When
    submit(client)
    # Then
    assert places == [False]


def has_loop() -> bool:
    """Whether this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def test_lists_have_filters_and_cursors(client: TestClient, world: World) -> None:
    # Given
    ids = [submit(client)["id"] for _ in range(3)]
    batch = world.submit(batch_file(range(1))).public_id
    # When
    page = client.get("/api/v1/jobs?state=in_progress&limit=2").json()
    rest = client.get(f"/api/v1/jobs?state=in_progress&limit=2&after={page['last_id']}").json()
    # Then
    assert [job["id"] for job in page["data"] + rest["data"]] == ids[::-1]
    assert (page["has_more"], rest["has_more"]) == (True, False)
    assert [job["id"] for job in client.get("/api/v1/jobs?state=validating").json()["data"]] == [batch]
    assert client.get("/api/v1/jobs?kind=benchmark").json()["data"] == []
    assert [entry["id"] for entry in client.get("/v1/batches").json()["data"]] == [batch]


def test_a_new_priority_holds_for_what_has_not_started(client: TestClient, world: World) -> None:
    # Given
    first, second = submit(client), submit(client)
    # When
    response = client.patch(f"/api/v1/jobs/{second['id']}", json={"priority": 9})
    # Then
    assert response.json()["priority"] == 9
    claimed = [lease.job_public_id for lease in (world.claim(), world.claim()) if lease is not None]
    assert claimed == [second["id"], first["id"]]


def test_deadline_and_metadata_can_be_changed_until_the_end(client: TestClient, world: World) -> None:
    # Given
    job = submit(client)
    deadline = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    # When
    changed = client.patch(f"/api/v1/jobs/{job['id']}", json={"deadline": deadline, "metadata": {"a": "b"}}).json()
    # Then
    assert datetime.fromisoformat(changed["deadline"]) == datetime.fromisoformat(deadline)
    assert changed["metadata"] == {"a": "b"}
    end(world, client, job)
    assert client.patch(f"/api/v1/jobs/{job['id']}", json={"priority": 1}).status_code == 409


def end(world: World, client: TestClient, job: dict[str, object]) -> None:
    assert client.delete(f"/api/v1/jobs/{job['id']}").status_code == 202
    finalizing.finalize(world.services, str(job["id"]))


def test_delete_cancels_what_runs_and_removes_what_has_ended(client: TestClient, world: World) -> None:
    # Given
    job = submit(client)
    # When
    end(world, client, job)
    # Then
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    assert client.delete(f"/api/v1/jobs/{job['id']}").json() == {
        "id": job["id"],
        "object": "job.deleted",
        "deleted": True,
    }
    assert client.get(f"/api/v1/jobs/{job['id']}").status_code == 404
    assert client.get(f"/api/v1/jobs/{job['id']}/results").status_code == 404


def test_a_job_that_is_removed_leaves_no_row(client: TestClient, world: World) -> None:
    # Given a job of whose requests one has an outcome and another waits for another try
    job = submit(client)
    lease = world.claim()
    assert lease is not None
    with world.database.begin() as session:
        chunks.write(session, lease, [success(0)], [Retry(1, 1, "overloaded", "full", 0.0)])
        chunks.hand_back(session, lease)
    end(world, client, job)
    # When
    client.delete(f"/api/v1/jobs/{job['id']}")
    # Then
    with world.database.begin() as session:
        for table in ("jobs", "requests", "outcomes", "chunks", "retries"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0, table


def test_queues_show_what_waits_and_runs(client: TestClient, world: World) -> None:
    # Given
    submit(client, prompts=[f"prompt {index}" for index in range(25)])
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0)])
    # When
    queues = {queue["service_class"]: queue for queue in client.get("/api/v1/queues").json()["data"]}
    # Then
    batch = queues["batch"]
    assert (batch["num_waiting_chunks"], batch["num_running_chunks"]) == (2, 1)
    assert (batch["num_waiting_rows"], batch["num_running_rows"]) == (15, 9)
    assert batch["num_messages"] == 3
    assert batch["oldest_age_seconds"] >= 0
    assert queues["online"]["num_waiting_rows"] == 0
    assert queues["online"]["oldest_age_seconds"] is None


def test_nodes_show_devices_and_their_models(client: TestClient) -> None:
    nodes = client.get("/api/v1/nodes").json()["data"]
    assert [node["name"] for node in nodes] == ["node"]
    assert [(device["name"], device["models"]) for device in nodes[0]["devices"]] == [("cpu", [MODEL])]
