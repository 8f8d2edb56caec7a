"""The HTTP API over the real servers, with nothing behind it that runs jobs: what it takes, refuses and keeps."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_api
from core.settings import Settings
from tests.world import MODEL, World, batch_file, changed, success

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def client_of(settings: Settings) -> TestClient:
    return TestClient(create_api(settings), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with client_of(world.services.settings) as client:
        yield client


def upload(client: TestClient, name: str = "in.jsonl", content: bytes = b"{}\n") -> str:
    response = client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "batch"})
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def test_it_is_ready_when_its_servers_are(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ok"


def test_without_redis_it_is_not_ready_and_says_when_to_come_again(world: World) -> None:
    # Given
    with client_of(changed(world.services.settings, redis_url="redis://127.0.0.1:1/0")) as client:
        # When
        response = client.get("/readyz")
    # Then
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "Redis is away" in response.json()["error"]["message"]


def test_a_batch_is_accepted_without_a_broker_because_it_is_found_again(world: World) -> None:
    # Given
    with client_of(changed(world.services.settings, redis_url="redis://127.0.0.1:1/0")) as client:
        # When
        body = {"input_file_id": upload(client), "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        response = client.post("/v1/batches", json=body)
    # Then
    assert response.status_code == 200
    assert response.json()["status"] == "validating"


def test_a_question_without_a_broker_is_refused_and_does_not_run_later(world: World) -> None:
    # Given
    with client_of(changed(world.services.settings, redis_url="redis://127.0.0.1:1/0")) as client:
        # When
        response = client.post("/v1/chat/completions", json=CHAT)
    # Then
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    with world.database.begin() as session:
        assert session.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 0


def test_a_question_that_nobody_answers_in_time_is_cancelled_and_not_to_be_retried(world: World) -> None:
    # Given
    with client_of(changed(world.services.settings, online_timeout_seconds=0.1)) as client:
        # When
        response = client.post("/v1/chat/completions", json=CHAT)
    # Then
    assert response.status_code == 503
    assert response.headers["x-should-retry"] == "false"
    assert "no answer within" in response.json()["error"]["message"]
    assert world.claim() is None


def test_a_web_page_under_a_name_of_its_own_does_not_get_in(client: TestClient) -> None:
    assert client.get("/v1/files", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/v1/files", headers={"host": "localhost:8700"}).status_code == 200


def test_a_proxy_may_be_trusted_by_name(world: World) -> None:
    with client_of(changed(world.services.settings, trusted_hosts="llm.example, other.example")) as client:
        assert client.get("/v1/files", headers={"host": "llm.example"}).status_code == 200


def test_a_form_of_another_site_starts_no_generation(client: TestClient) -> None:
    # When
    response = client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    # Then
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "content-type"


def test_a_body_over_the_limit_is_refused_announced_or_not(world: World) -> None:
    # Given
    def stream() -> Iterator[bytes]:
        yield from [b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n', b"y" * 3_000_000]

    kind = {"content-type": "multipart/form-data; boundary=x"}
    with client_of(changed(world.services.settings, max_file_bytes=1_000_000)) as client:
        # When
        announced = client.post("/v1/files", content=b"y" * 3_000_000, headers=kind)
        streamed = client.post("/v1/files", content=stream(), headers=kind)
        question = client.post(
            "/v1/chat/completions", content=b"y" * 17_000_000, headers={"content-type": "application/json"}
        )
    # Then
    for response in (announced, streamed, question):
        assert response.status_code == 413, response.text
        assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    "field", [{"seed": 2**64}, {"max_tokens": 2**40}, {"top_k": 2**63}, {"temperature": 3}, {"stop": 5}, {"n": 129}]
)
def test_values_out_of_their_range_are_refused_by_name(client: TestClient, field: dict[str, object]) -> None:
    # When
    response = client.post("/v1/chat/completions", json={**CHAT, **field})
    # Then
    assert response.status_code == 400
    assert response.json()["error"]["param"] in field


def test_nesting_without_end_is_a_bad_request(client: TestClient) -> None:
    body = b'{"model":"' + MODEL.encode() + b'","messages":' + b"[" * 100_000
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400


def test_files_are_listed_in_pages_in_either_order(client: TestClient) -> None:
    # Given
    ids = [upload(client, f"{index}.jsonl") for index in range(5)]
    # When
    newest = client.get("/v1/files", params={"limit": 2}).json()
    next_page = client.get("/v1/files", params={"limit": 2, "after": newest["last_id"]}).json()
    oldest = client.get("/v1/files", params={"limit": 4, "order": "asc"}).json()
    # Then
    assert [file["id"] for file in newest["data"]] == [ids[4], ids[3]]
    assert [file["id"] for file in next_page["data"]] == [ids[2], ids[1]]
    assert newest["has_more"]
    assert [file["id"] for file in oldest["data"]] == ids[:4]


def test_another_tenants_files_and_batches_are_not_there(world: World, client: TestClient) -> None:
    # Given
    file_id = upload(client)
    job = world.start_job(3)
    with world.database.begin() as session:
        session.execute(text("UPDATE files SET tenant = 'other'"))
        session.execute(text("UPDATE jobs SET tenant = 'other'"))
    # When / Then
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/batches/{job.public_id}"):
        assert client.get(path).status_code == 404
    assert client.get("/v1/files").json()["data"] == []
    assert client.get("/v1/batches").json()["data"] == []
    assert client.post(f"/v1/batches/{job.public_id}/cancel").status_code == 404
    assert client.get(f"/api/v1/jobs/{job.public_id}").status_code == 404


def test_a_running_batch_shows_its_progress(world: World, client: TestClient) -> None:
    # Given
    job = world.start_job(10)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0), success(1)])
    # When
    batch = client.get(f"/v1/batches/{job.public_id}").json()
    native = client.get(f"/api/v1/jobs/{job.public_id}").json()
    # Then
    assert batch["request_counts"] == {"total": 10, "completed": 2, "failed": 0}
    assert batch["usage"]["output_tokens"] == 4
    assert (native["num_completed"], native["completion_tokens"]) == (2, 4)


def test_the_page_at_the_root_shows_models_and_batches(world: World, client: TestClient) -> None:
    # Given
    job = world.start_job(10)
    # When
    page = client.get("/").text
    # Then
    assert MODEL in page
    assert job.public_id in page


def test_a_model_of_a_node_that_is_gone_is_not_offered(world: World, client: TestClient) -> None:
    # Given
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MODEL]
    # When
    with world.database.begin() as session:
        session.execute(text("UPDATE placements SET seen_at = now() - interval '1 hour'"))
    # Then
    assert client.get("/v1/models").json()["data"] == []
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 404


def test_the_window_of_a_batch_is_checked(client: TestClient) -> None:
    body = {"input_file_id": upload(client, content=batch_file(range(1))), "endpoint": "/v1/chat/completions"}
    for window, status in (("24h", 200), ("90m", 200), ("8d", 400), ("0h", 400), ("400h", 400), ("soon", 400)):
        assert client.post("/v1/batches", json={**body, "completion_window": window}).status_code == status
