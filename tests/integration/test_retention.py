"""What is removed when its time is over, what stays, and that no moment of a crash leaves anything for ever."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from sqlalchemy import text

from core.job import JobState
from db import idempotency
from db.files import UrlFiles, new_file_id
from db.idempotency import Key
from db.upkeep import jobs as old_jobs
from tasks.upkeep import retention
from tasks.upkeep.finalizing import finalize
from tasks.upkeep.intake import validate
from tests.world import World, changed, success

TABLES = ("jobs", "requests", "outcomes", "chunks", "retries")


def clean(world: World) -> None:
    assert retention.clean(world.services, lambda: False)


def complete(world: World, num_requests: int = 25) -> str:
    job = world.start_job(num_requests)
    while (lease := world.claim()) is not None:
        world.write(lease, [success(index) for index in world.unfinished(lease)])
    finalize(world.services, job.public_id)
    return job.public_id


def age(world: World, days: int) -> None:
    """Makes everything that there is as old as that."""
    past = f"- interval '{days} days'"
    with world.database.begin() as session:
        for table in ("idempotency_keys", "file_blocks", "webhook_deliveries"):
            session.execute(text(f"UPDATE {table} SET created_at = created_at {past}"))
        session.execute(text(f"UPDATE files SET expires_at = expires_at {past}"))
        session.execute(
            text(
                f"UPDATE jobs SET created_at = created_at {past}, completed_at = completed_at {past},"
                f" failed_at = failed_at {past}, cancelled_at = cancelled_at {past}, expired_at = expired_at {past}"
            )
        )


def counts(world: World, *tables: str) -> list[int]:
    with world.database.begin() as session:
        return [session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables or TABLES]


def test_a_job_goes_with_all_its_rows_when_its_time_is_over(world: World) -> None:
    # Given
    complete(world)
    age(world, 29)
    clean(world)
    assert counts(world)[:4] == [1, 25, 25, 3]
    # When
    age(world, 2)
    clean(world)
    # Then
    assert counts(world) == [0, 0, 0, 0, 0]


def test_a_job_that_runs_stays_however_old_it_is(world: World) -> None:
    # Given
    job = world.start_job(5)
    refused = world.submit(b"not json")
    assert not validate(world.services, refused.public_id)
    age(world, 100)
    # When
    clean(world)
    # Then
    assert world.job(job.public_id).state == JobState.IN_PROGRESS
    assert counts(world)[:3] == [1, 5, 0]


def test_a_large_job_goes_in_steps_and_a_step_that_was_the_last_is_taken_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(old_jobs, "STEP_ROWS", 10)
    complete(world, 25)
    age(world, 31)
    # When time is over in the middle of the job
    assert not retention.clean(world.services, lambda: counts(world, "requests") != [25])
    # Then
    assert counts(world)[:3] == [1, 15, 15]
    # When
    clean(world)
    # Then
    assert counts(world) == [0, 0, 0, 0, 0]


def test_answers_that_somebody_waited_for_go_sooner_but_stored_responses_do_not(world: World) -> None:
    # Given
    waited, response, batch = complete(world, 1), complete(world, 1), complete(world, 1)
    with world.database.begin() as session:
        online = text("UPDATE jobs SET service_class = 'online' WHERE public_id <> :batch")
        session.execute(online, {"batch": batch})
        stored = text(
            "INSERT INTO responses (id, job_id, is_stored, has_tools, is_streamed, items, echo)"
            " SELECT public_id, id, public_id = :response, false, false, '[]', '{}' FROM jobs WHERE public_id <> :batch"
        )
        session.execute(stored, {"response": response, "batch": batch})
    age(world, 2)
    # When
    clean(world)
    # Then
    with world.database.begin() as session:
        left = set(session.scalars(text("SELECT public_id FROM jobs")))
    assert left == {response, batch}
    assert waited not in left


def test_nothing_goes_where_settings_keep_it_for_ever(world: World) -> None:
    # Given
    settings = changed(world.services.settings, job_retention_days=0, online_retention_days=0, webhook_retention_days=0)
    world.services = replace(world.services, settings=settings)
    complete(world)
    age(world, 3000)
    # When
    clean(world)
    # Then
    assert counts(world)[0] == 1


def test_two_at_once_harm_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setattr(old_jobs, "STEP_ROWS", 40)
    kept = world.start_job(5)
    for _ in range(8):
        complete(world, 15)
    age(world, 31)
    # When
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: clean(world), range(3)))
    # Then
    assert counts(world)[:2] == [1, 5]
    assert world.job(kept.public_id).num_requests == 5


def test_an_expired_file_is_gone_at_once_and_its_bytes_with_the_next_run(world: World, official: OpenAI) -> None:
    # Given
    file = official.files.create(
        file=("a.jsonl", b"{}\n"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    kept = official.files.create(file=("b.jsonl", b"{}\n"), purpose="batch")
    assert file.expires_at == file.created_at + 3600
    assert kept.expires_at == kept.created_at + 30 * 24 * 3600
    # When
    age(world, 1)
    # Then
    for look in (official.files.retrieve, official.files.content):
        with pytest.raises(openai.NotFoundError):
            look(file.id)
    assert [listed.id for listed in official.files.list()] == [kept.id]
    # When
    clean(world)
    # Then
    assert counts(world, "files", "file_blocks") == [1, 1]
    assert official.files.content(kept.id).read() == b"{}\n"


def test_bytes_that_no_row_names_go_after_a_day(world: World) -> None:
    # Given an upload that died before its row, and a file that is whole
    whole = world.upload(b"whole")
    world.services.files.write(new_file_id(), [b"left over"])
    clean(world)
    assert counts(world, "file_blocks") == [2]
    # When
    age(world, 2)
    clean(world)
    # Then
    assert counts(world, "file_blocks") == [1]
    assert b"".join(world.services.files.read(whole)) == b"whole"


def test_bytes_in_a_directory_go_too_but_nothing_that_is_not_ours(world: World, tmp_path: Path) -> None:
    # Given
    store = UrlFiles(f"file://{tmp_path}")
    world.services = replace(world.services, files=store)
    whole, left_over, young = world.upload(b"whole"), new_file_id(), new_file_id()
    for name in (left_over, f"{left_over}.0123abcd.part", "file-of-somebody.txt", young):
        (tmp_path / name).write_bytes(b"x")
    for path in tmp_path.iterdir():
        if path.name != young:
            os.utime(path, (0, 0))
    # When
    clean(world)
    # Then
    assert {path.name for path in tmp_path.iterdir()} == {whole, young, "file-of-somebody.txt"}


def test_a_store_that_holds_nothing_yet_is_clean(tmp_path: Path) -> None:
    assert list(UrlFiles(f"file://{tmp_path}/new").stored(older_than=retention.ORPHAN_AGE)) == []


def test_a_key_is_kept_for_a_day(world: World) -> None:
    # Given
    key = Key("default", "/v1/batches", "abc", b"1")
    with world.database.begin() as session:
        idempotency.remember(session, key, "batch_1")
    clean(world)
    assert counts(world, "idempotency_keys") == [1]
    # When
    age(world, 1)
    clean(world)
    # Then
    assert counts(world, "idempotency_keys") == [0]


def test_webhook_messages_go_when_they_are_settled(world: World) -> None:
    # Given
    with world.database.begin() as session:
        session.execute(
            text(
                "INSERT INTO webhook_endpoints (id, tenant, name, url, event_types, secret)"
                " VALUES ('e', 'default', 'n', 'u', ARRAY['batch.completed'], 's')"
            )
        )
        session.execute(
            text(
                "INSERT INTO webhook_deliveries (webhook_id, endpoint_id, event_type, payload, state)"
                " SELECT state, 'e', 't', '', state FROM unnest(ARRAY['pending', 'delivered', 'dead']) AS state"
            )
        )
    age(world, 8)
    # When
    clean(world)
    # Then
    with world.database.begin() as session:
        assert list(session.scalars(text("SELECT state FROM webhook_deliveries"))) == ["pending"]


def test_what_is_left_when_time_is_over_waits_behind_the_other_upkeep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(retention, "RUN_SECONDS", -1.0)
    # When
    retention.remove_expired()
    # Then
    assert world.services.redis.llen("upkeep") == 1
