"""An online job ends in one statement when it has its outcomes, and only then."""

from datetime import timedelta

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
