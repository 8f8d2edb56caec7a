"""An online job ends in one statement when it has its outcomes, and only then."""

from datetime import timedelta

from sqlalchemy import inspect

from core.job import JobState, ServiceClass
from core.openai.completion import CHAT_ENDPOINT
from db import chunks, jobs, online
from db.chunks import Lease
from db.jobs import NewOnlineRequest
from db.tables import JobRow
from tests.world import MODEL, World, success


def begin(world: World) -> tuple[JobRow, Lease]:
    wanted = NewOnlineRequest(
        endpoint=CHAT_ENDPOINT, model=MODEL, body="{}", expires_after=timedelta(minutes=1), tenant="default"
    )
    with world.database.begin() as session:
        job = jobs.create_online(session, wanted)
    with world.database.begin() as session:
        lease = chunks.claim(
            session, owner="worker", service_class=ServiceClass.ONLINE.value, models=[MODEL], lease_seconds=60.0
        )
    assert lease is not None
    return job, lease


def complete(world: World, job: JobRow) -> bool:
    with world.database.begin() as session:
        return online.complete(session, job.id)


def test_a_job_with_its_outcome_is_completed_with_exact_counts_once(world: World) -> None:
    # Given
    job, lease = begin(world)
    assert not complete(world, job)
    world.write(lease, [success(0)])
    # When / Then
    assert complete(world, job)
    assert not complete(world, job)
    ended = world.job(job.public_id)
    assert (ended.state, ended.num_completed, ended.num_failed) == (JobState.COMPLETED, 1, 0)
    assert (ended.prompt_tokens, ended.completion_tokens) == (3, 2)
    assert ended.finalizing_at == ended.completed_at


def test_a_job_that_is_being_cancelled_ends_another_way(world: World) -> None:
    # Given
    job, lease = begin(world)
    world.write(lease, [success(0)])
    with world.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
    # When / Then
    assert not complete(world, job)
    assert world.job(job.public_id).state == JobState.CANCELLING


def test_a_job_is_given_as_it_is_stored_with_its_requests_and_its_chunk(world: World) -> None:
    # Given
    wanted = NewOnlineRequest(
        endpoint=CHAT_ENDPOINT,
        model=MODEL,
        body='{"first": "\\u0000"}',
        expires_after=timedelta(minutes=1),
        key_id=7,
        priority=3,
        more_bodies=("{}",),
    )
    # When
    with world.database.begin() as session:
        made = jobs.create_online(session, wanted)
    # Then
    stored = world.job(made.public_id)
    names = [column.key for column in inspect(JobRow).column_attrs]
    assert {name: getattr(made, name) for name in names} == {name: getattr(stored, name) for name in names}
    with world.database.begin() as session:
        lease = chunks.claim(
            session, owner="worker", service_class=ServiceClass.ONLINE.value, models=[MODEL], lease_seconds=60.0
        )
        assert lease is not None
        assert [request.body.decode() for request in chunks.unfinished(session, lease)] == list(wanted.bodies)
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == timedelta(minutes=1)
