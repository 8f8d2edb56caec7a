"""Models that jobs made: listed, kept while they are served, and taken away by the node that holds them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_api
from cli.artifacts import listing
from cli.client import RequestFailed, Server
from core.errors import ConfigurationError
from db import models
from db.jobs import new_public_id
from db.tables import ArtifactRow
from tasks import services as installed
from tasks.queues import heavy_queue
from tasks.upkeep import retention
from tasks.upkeep.artifacts import remove_artifacts
from tests.artifacts import NODE, NUM_BYTES, make_artifact
from tests.serving import serving
from tests.world import MODEL, World, changed


@pytest.fixture
def world(world: World, tmp_path: Path) -> World:
    """A worker on the node that holds the artifacts."""
    settings = changed(world.services.settings, data_dir=str(tmp_path), node_name=NODE, artifact_retention_days=7)
    world.services = replace(world.services, settings=settings)
    installed.install(world.services)
    return world


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    api = create_api(world.services.settings)
    with TestClient(api, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def make(world: World, name: str = "small") -> ArtifactRow:
    """With its directory, and the lock beside it."""
    row = make_artifact(world, name)
    directory = Path(row.directory)
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory.parent / f".{directory.name}.lock").touch()
    return row


def serve(world: World, **sources: str) -> None:
    """What the agent of the node says that it serves."""
    with world.database.begin() as session:
        models.place(session, node=NODE, devices=["cpu"], sources={MODEL: "null:", **sources})


def on_disk(world: World) -> set[str]:
    return {path.name for path in world.services.settings.artifacts_path.iterdir()}


def ids(client: TestClient) -> list[str]:
    return [one["id"] for one in client.get("/api/v1/artifacts").json()["data"]]


def test_artifacts_are_listed_newest_first_with_what_they_take(world: World, client: TestClient) -> None:
    # Given
    made = [make(world, name) for name in ("one", "two", "three")]
    # When
    first = client.get("/api/v1/artifacts", params={"limit": 2}).json()
    rest = client.get("/api/v1/artifacts", params={"limit": 2, "after": first["last_id"]}).json()
    # Then
    assert [one["name"] for one in first["data"] + rest["data"]] == ["three", "two", "one"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["total_bytes"] == rest["total_bytes"] == 3 * NUM_BYTES
    shown = client.get(f"/api/v1/artifacts/{made[0].id}").json()
    assert shown == rest["data"][0]
    assert (shown["model"], shown["directory"], shown["details"]) == (MODEL, made[0].directory, {"method": "nf4"})


def test_a_deleted_artifact_is_gone_at_once_and_its_directory_when_its_node_hears_of_it(
    world: World, client: TestClient
) -> None:
    # Given
    gone, kept = make(world), make(world)
    # When
    assert client.delete(f"/api/v1/artifacts/{gone.id}").json() == {
        "id": gone.id,
        "object": "artifact.deleted",
        "deleted": True,
    }
    # Then
    assert ids(client) == [kept.id]
    for method in ("GET", "DELETE"):
        assert client.request(method, f"/api/v1/artifacts/{gone.id}").status_code == 404
    assert world.services.redis.llen(heavy_queue(NODE)) == 1
    # When
    remove_artifacts(NODE)
    # Then
    assert on_disk(world) == {kept.job_public_id, f".{kept.job_public_id}.lock"}
    with world.database.begin() as session:
        assert session.scalar(text("SELECT count(*) FROM artifacts")) == 1


def test_what_a_model_is_served_from_is_not_deleted(world: World, client: TestClient) -> None:
    # Given
    row = make(world)
    serve(world, small=f"{row.directory}/../{row.job_public_id}/")
    # When
    refused = client.delete(f"/api/v1/artifacts/{row.id}")
    # Then
    assert refused.status_code == 409
    assert "small on node" in refused.json()["error"]["message"]
    assert client.get(f"/api/v1/artifacts/{row.id}").json()["served_as"] == ["small on node"]
    # When
    serve(world)
    # Then
    assert client.delete(f"/api/v1/artifacts/{row.id}").status_code == 200


def test_a_node_keeps_what_it_serves_whatever_it_is_told(world: World, client: TestClient, tmp_path: Path) -> None:
    # Given a model that is served by another name of its directory, of which the database cannot know
    row = make(world)
    (tmp_path / "link").symlink_to(row.directory)
    settings = changed(world.services.settings, models=f"{MODEL}=null:,small={tmp_path}/link")
    installed.install(replace(world.services, settings=settings))
    assert client.delete(f"/api/v1/artifacts/{row.id}").status_code == 200
    # When
    remove_artifacts(NODE)
    # Then
    assert row.job_public_id in on_disk(world)
    # When it is served no more
    installed.install(world.services)
    remove_artifacts(NODE)
    # Then
    assert on_disk(world) == set()


def test_retention_removes_the_old_ones_but_not_what_is_served(world: World, client: TestClient) -> None:
    # Given
    old, served, young = make(world), make(world), make(world)
    serve(world, small=served.directory)
    with world.database.begin() as session:
        past = text("UPDATE artifacts SET created_at = created_at - interval '8 days' WHERE id <> :young")
        session.execute(past, {"young": young.id})
    # When
    assert retention.clean(world.services, lambda: False)
    # Then
    assert ids(client) == [young.id, served.id]
    assert world.services.redis.llen(heavy_queue(NODE)) == 1
    # When
    remove_artifacts(NODE)
    # Then
    assert old.job_public_id not in on_disk(world)
    assert {young.job_public_id, served.job_public_id} <= on_disk(world)


def test_artifacts_stay_for_ever_unless_a_setting_says_otherwise(world: World, client: TestClient) -> None:
    # Given
    row = make(world)
    with world.database.begin() as session:
        session.execute(text("UPDATE artifacts SET created_at = created_at - interval '10 years'"))
    settings = changed(world.services.settings, artifact_retention_days=0)
    # When
    assert retention.clean(replace(world.services, settings=settings), lambda: False)
    # Then
    assert ids(client) == [row.id]


def test_a_node_that_is_busy_is_told_later(world: World) -> None:
    # Given
    for _ in range(2):
        # When
        assert retention.clean(world.services, lambda: False)
    # Then
    assert world.services.redis.llen(heavy_queue(NODE)) == 1


def test_what_a_job_left_that_ended_without_an_artifact_goes(world: World) -> None:
    # Given
    kept = make(world)
    over, running, unknown = (new_public_id("job") for _ in range(3))
    for job, state in ((over, "cancelled"), (running, "in_progress")):
        with world.database.begin() as session:
            values = {"job": job, "state": state, "id": world.start_job(1).id}
            session.execute(text("UPDATE jobs SET public_id = :job, state = :state WHERE id = :id"), values)
    for job in (over, running, unknown):
        (world.services.settings.artifacts_path / f".{job}.partial").mkdir()
    (world.services.settings.artifacts_path / "somebody-elses").mkdir()
    before = on_disk(world)
    # When
    remove_artifacts(NODE)
    # Then
    assert on_disk(world) == before - {f".{over}.partial"}
    assert kept.job_public_id in on_disk(world)


def test_another_node_takes_nothing_away(world: World) -> None:
    with pytest.raises(ConfigurationError, match="got the artifacts of elsewhere"):
        remove_artifacts("elsewhere")


def test_the_command_line_lists_and_removes(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    # Given
    gone, kept = make(world, "first"), make(world, "second")
    serve(world, small=kept.directory)
    with serving(world.services.settings) as url:
        # When
        listing.remove(Server(url), [gone.id])
        capsys.readouterr()
        listing.list_artifacts(Server(url), as_json=False)
        shown = capsys.readouterr().out
        # Then
        assert "1 in all, 5.0 MB on disk" in shown
        assert "first" not in shown
        with pytest.raises(RequestFailed, match="small on node"):
            listing.remove(Server(url), [kept.id])
