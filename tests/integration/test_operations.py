"""Following jobs, holding queues, looking at nodes and figures: over the real servers."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_api
from api.native import events as events_module
from core.protocol import DeviceReading, EngineStats, Hello, ModelStatus
from db.native import nodes
from tasks.upkeep import finalizing
from tasks.upkeep.intake import validate
from tests.polling import until
from tests.world import MODEL, World, changed, failure, success
from workers.telemetry import Telemetry

Event = tuple[str, str, dict[str, object]]
PROMPTS = {"kind": "inference", "model": MODEL, "prompts": ["one", "two", "three"]}
HELLO = Hello(
    boot_id="boot",
    device="cpu",
    credits=8,
    models=[ModelStatus(MODEL, "ready", weight_bytes=12)],
    stats=EngineStats(num_running=3, completion_tokens_total=70, device=DeviceReading(power_watts=5.0)),
)


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    api = create_api(changed(world.services.settings, metrics="on"))
    with TestClient(api, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def submit(client: TestClient) -> str:
    response = client.post("/api/v1/jobs", json=PROMPTS)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def events(client: TestClient, job: str, last: str | None = None) -> list[Event]:
    """All of a stream, which ends with the job: (id, name, data)."""
    headers = {} if last is None else {"last-event-id": last}
    text = client.get(f"/api/v1/jobs/{job}/events", headers=headers).text
    return [parsed(block) for block in text.split("\n\n") if block.startswith("id: ")]


def parsed(block: str) -> Event:
    fields = dict(line.split(": ", 1) for line in block.splitlines())
    return fields["id"], fields["event"], json.loads(fields["data"])


def run_to_the_end(world: World, job: str) -> None:
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(index) for index in range(3)])
    finalizing.finalize(world.services, job)


def states(told: list[Event]) -> list[object]:
    return [data["state"] for _, name, data in told if name == "state"]


def test_a_job_that_has_ended_tells_its_life(client: TestClient, world: World) -> None:
    # Given
    job = submit(client)
    run_to_the_end(world, job)
    # When
    told = events(client, job)
    # Then
    assert states(told) == ["validating", "in_progress", "finalizing", "completed"]
    assert [data["num_completed"] for _, name, data in told if name == "progress"] == [3]
    assert told[-1][1] == "state"


def test_a_stream_tells_what_happens_and_ends_with_the_job(client: TestClient, world: World) -> None:
    # Given somebody who follows while the job runs
    job = submit(client)
    told: list[Event] = []
    follower = threading.Thread(target=lambda: told.extend(events(client, job)))
    follower.start()
    # When
    run_to_the_end(world, job)
    follower.join()
    # Then
    assert states(told)[-1] == "completed"
    assert [data["fraction"] for _, name, data in told if name == "progress"][-1] == 1.0


def test_whoever_comes_back_hears_only_what_is_new(client: TestClient, world: World) -> None:
    # Given
    job = submit(client)
    run_to_the_end(world, job)
    told = events(client, job)
    # When / Then
    for index, (event_id, _, _) in enumerate(told):
        assert events(client, job, last=event_id) == told[index + 1 :]
    assert events(client, job, last="nonsense") == told


def test_a_job_that_is_not_there_has_no_events(client: TestClient) -> None:
    assert client.get("/api/v1/jobs/job_1/events").status_code == 404


def test_a_tenant_leaves_streams_to_the_others(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    job = submit(client)
    streams = {"other": events_module.MOST_STREAMS_OF_A_TENANT, "default": 1}
    monkeypatch.setattr(events_module, "_streams", Counter(streams))
    monkeypatch.setattr(events_module, "STREAM_SECONDS", 0.0)
    # When / Then
    assert client.get(f"/api/v1/jobs/{job}/events").status_code == 200
    monkeypatch.setattr(events_module, "MOST_STREAMS_OF_A_TENANT", 1)
    assert client.get(f"/api/v1/jobs/{job}/events").status_code == 429


def test_a_queue_that_is_paused_gives_nothing_until_it_is_resumed(client: TestClient, world: World) -> None:
    # Given
    submit(client)
    # When
    held = client.post("/api/v1/queues/pause", json={"model": MODEL, "queue": "batch"}).json()
    # Then
    assert [(pause["queue"], pause["model"]) for pause in held["data"]] == [("batch", MODEL)]
    assert paused(client) == {"online": False, "batch": True}
    assert world.claim() is None
    # When
    assert client.post("/api/v1/queues/resume", json={}).json()["num_lifted"] == 1
    # Then
    assert paused(client) == {"online": False, "batch": False}
    assert world.claim() is not None


def paused(client: TestClient) -> dict[str, bool]:
    return {queue["service_class"]: queue["is_paused"] for queue in client.get("/api/v1/queues").json()["data"]}


def test_a_pause_tells_what_had_begun_and_is_not_held_back(client: TestClient, world: World) -> None:
    # Given
    job = submit(client)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0)])
    # When / Then
    assert client.post("/api/v1/queues/pause", json={"queue": "online"}).json()["still_running"] == []
    held = client.post("/api/v1/queues/pause", json={"queue": "batch"}).json()
    assert held["still_running"] == [{"queue": "batch", "model": MODEL, "num_rows": 2, "num_jobs": 1, "jobs": [job]}]
    assert client.post("/api/v1/queues/resume", json={}).json()["still_running"] == []


def test_queues_say_how_fast_they_are_worked_off_and_how_long_that_takes(client: TestClient, world: World) -> None:
    # Given two rows of three written ten seconds ago, of three and two tokens each
    submit(client)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0), success(1)])
    with world.database.begin() as session:
        session.execute(text("UPDATE usage_entries SET at = now() - interval '10 seconds'"))
        session.execute(text("UPDATE chunks SET state = 'waiting'"))
    # When
    queues = {queue["service_class"]: queue for queue in client.get("/api/v1/queues").json()["data"]}
    # Then
    batch, online = queues["batch"], queues["online"]
    assert 0 < batch["rows_per_second"] <= 0.2
    assert batch["prompt_tokens_per_second"] == pytest.approx(3 * batch["rows_per_second"], rel=0.01)
    assert batch["completion_tokens_per_second"] == pytest.approx(2 * batch["rows_per_second"], rel=0.01)
    assert batch["estimated_wait_seconds"] == pytest.approx(1 / batch["rows_per_second"], rel=0.05)
    assert (online["rows_per_second"], online["estimated_wait_seconds"]) == (None, 0.0)


def test_a_model_that_nobody_serves_cannot_be_paused(client: TestClient) -> None:
    assert client.post("/api/v1/queues/pause", json={"model": "nobody/serves-it"}).status_code == 404


def test_a_node_shows_what_its_engine_says(client: TestClient, world: World) -> None:
    # Given
    telemetry = Telemetry(world.database, "node", "cpu", lambda: HELLO)
    # When
    telemetry.start()
    until(lambda: device(client)["stats"])
    telemetry.close()
    # Then
    shown = device(client)
    assert (shown["stats"]["num_running"], shown["stats"]["device"]["power_watts"]) == (3, 5.0)
    assert shown["statuses"][0]["weight_bytes"] == 12


def device(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/api/v1/nodes").json()["data"][0]["devices"][0]
    return found


def test_metrics_count_requests_and_show_queues_jobs_and_engines(client: TestClient, world: World) -> None:
    # Given
    job = submit(client)
    client.get(f"/api/v1/jobs/{job}")
    client.get("/no/such/route")
    with world.database.begin() as session:
        nodes.report(session, node="node", device="cpu", hello=HELLO)
    # When
    lines = client.get("/metrics").text.splitlines()
    # Then
    assert f'millrace_queue_rows{{class="batch",model="{MODEL}",state="waiting"}} 3.0' in lines
    assert 'millrace_jobs{class="batch",kind="inference",state="in_progress"} 1.0' in lines
    assert 'millrace_engine_completion_tokens_total{device="cpu",node="node"} 70.0' in lines
    shown = 'millrace_http_requests_total{method="GET",route="/api/v1/jobs/{job_id}",status="200"} 1.0'
    assert shown in lines
    assert not any(job in line or "no/such" in line for line in lines)


def test_metrics_are_off_unless_a_setting_says_otherwise(world: World) -> None:
    with TestClient(create_api(world.services.settings), base_url="http://127.0.0.1") as client:
        assert client.get("/metrics").status_code == 404


def test_the_page_shows_what_whoever_watches_must_know(client: TestClient, world: World) -> None:
    # Given a queue that is held, an engine that is away, a job that failed and one with failed rows
    job = submit(client)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0), failure(1)])
    refused = world.submit(b"no json")
    validate(world.services, refused.public_id)
    client.post("/api/v1/queues/pause", json={"queue": "batch"})
    # When
    page = client.get("/").text
    # Then
    assert re.search(r'"number">[\d.]+</td><td class="number">[\d.]+</td>', page), "rows and answer tokens per second"
    for shown in (job, refused.public_id, "1 of 3 rows failed", "paused", "engine away", "expected one JSON object"):
        assert shown in page
    assert "<script" not in page
