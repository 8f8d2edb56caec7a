"""What the reconciler looks at: what is due, once, in order, and never more than so much at a time."""

from sqlalchemy import text

from benchmarks.scale.statements import ACTIONS, explain
from core.job import JobState
from db import jobs
from db.upkeep import looks
from tasks.upkeep import reconciler
from tasks.upkeep.finalizing import finalize
from tests.world import World, success

NUM_RUNNING = 10_000

# Jobs in progress with a busy chunk each, the first of a job done; none of them is due.
_RUNNING_JOBS = f"""
INSERT INTO jobs (public_id, kind, service_class, state, model, num_requests, expires_at, look_at)
SELECT 'batch_' || n, 'inference', 'batch', 'in_progress', 'test/model', 20, now() + interval '1 day',
    now() + interval '1 minute'
FROM generate_series(1, {NUM_RUNNING}) AS n;
INSERT INTO chunks (job_id, index, first_request, num_requests, model, service_class, priority, state)
SELECT id, k, 10 * k, 10, model, service_class, 5, CASE WHEN k = 0 THEN 'done' ELSE 'waiting' END
FROM jobs, generate_series(0, 1) AS k;
ANALYZE jobs;
ANALYZE chunks
"""


def make_due(world: World, table: str = "jobs") -> None:
    with world.database.begin() as session:
        session.execute(text(f"UPDATE {table} SET look_at = now() - interval '1 second' WHERE look_at IS NOT NULL"))


def sent(world: World) -> list[str]:
    """What waits in the queue of the upkeep worker."""
    return [str(message) for message in world.services.redis.lrange("upkeep", 0, -1)]


def look(world: World, *, room: int = 16, limit: int = 16) -> list[str]:
    with world.database.begin() as session:
        return [job.public_id for job in looks.look(session, room=room, limit=limit)]


def test_a_job_whose_last_chunk_ended_and_whose_worker_died_then_is_ended_soon(world: World) -> None:
    # Given a job that nobody would look at for a minute
    job = world.start_job(10)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(index) for index in range(10)])
    # When
    make_due(world, "chunks")
    reconciler.move_on(world.services)
    # Then
    (message,) = sent(world)
    assert "millrace.finalize_job" in message
    assert job.public_id in message
    # When it is told again
    reconciler.move_on(world.services)
    # Then once is enough for now
    assert len(sent(world)) == 1
    make_due(world)
    reconciler.move_on(world.services)
    assert len(sent(world)) == 2


def test_a_chunk_that_ends_before_the_last_one_moves_nothing_and_is_looked_at_once(world: World) -> None:
    # Given
    job = world.start_job(20)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(index) for index in range(10)])
    # When
    make_due(world, "chunks")
    reconciler.move_on(world.services)
    # Then
    assert sent(world) == []
    with world.database.begin() as session:
        assert session.execute(text("SELECT count(*) FROM chunks WHERE look_at IS NOT NULL")).scalar() == 0
        assert session.execute(text("SELECT look_at > now() FROM jobs WHERE id = :id"), {"id": job.id}).scalar()


def test_a_running_job_is_left_alone_for_long_and_a_stopping_one_is_not(world: World) -> None:
    # Given
    running, stopping = world.start_job(20), world.start_job(20)
    assert [world.claim() for _ in range(4)]
    with world.database.begin() as session:
        jobs.stop(session, stopping, JobState.CANCELLED)
    make_due(world)
    # When
    assert look(world) == []
    # Then
    with world.database.begin() as session:
        waits = session.execute(text("SELECT id, extract(epoch FROM look_at - now()) FROM jobs")).all()
    seconds = {row[0]: float(row[1]) for row in waits}
    assert 30 < seconds[running.id] <= 60
    assert seconds[stopping.id] <= 10


def test_those_that_cannot_move_on_do_not_hide_the_others(world: World) -> None:
    # Given
    names = [world.submit(b"{}").public_id for _ in range(5)]
    make_due(world)
    # When the queue has room for two at a time
    rounds = [look(world, room=2) for _ in range(4)]
    # Then
    assert [len(found) for found in rounds] == [2, 2, 1, 0]
    assert sorted(name for found in rounds for name in found) == sorted(names)


def test_no_more_are_looked_at_than_the_limit(world: World) -> None:
    # Given
    names = [world.submit(b"{}").public_id for _ in range(5)]
    make_due(world)
    # When / Then
    assert [len(look(world, limit=3)) for _ in range(3)] == [3, 2, 0]
    # Given
    for name in names:
        with world.database.begin() as session:
            jobs.move(session, world.job(name).id, JobState.IN_PROGRESS, {"expires_at": world.job(name).created_at})
    # When / Then
    with world.database.begin() as session:
        assert len(looks.overdue(session, limit=3)) == 3


def test_a_chunk_that_came_back_while_its_job_was_stopped_is_cancelled_and_the_job_ends(world: World) -> None:
    # Given
    job = world.start_job(10)
    with world.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
        session.execute(text("UPDATE chunks SET state = 'waiting'"))
    # When
    reconciler.move_on(world.services)
    # Then
    assert world.claim() is None
    assert len(sent(world)) == 1
    # When
    finalize(world.services, job.public_id)
    # Then
    assert world.job(job.public_id).state == JobState.CANCELLED


def test_a_job_past_its_window_that_nobody_runs_ends_in_the_same_round(world: World) -> None:
    # Given
    job = world.start_job(10)
    with world.database.begin() as session:
        session.execute(text("UPDATE jobs SET expires_at = now() - interval '1 second'"))
    # When
    reconciler.reconcile()
    # Then
    (message,) = [message for message in sent(world) if "millrace.finalize_job" in message]
    assert job.public_id in message


def test_what_a_round_costs_does_not_depend_on_how_many_jobs_run(world: World) -> None:
    # Given some of many that are due
    with world.database.engine.begin() as connection:
        for statement in _RUNNING_JOBS.split(";\n"):
            connection.execute(text(statement))
    with world.database.begin() as session:
        session.execute(text("UPDATE jobs SET look_at = now() WHERE id <= 20"))
        session.execute(text("UPDATE chunks SET look_at = now() WHERE job_id <= 20 AND index = 0"))
    # When
    names = [name for name in ACTIONS if name.startswith("reconcile_") and "shares" not in name]
    plans = {name: "\n".join(explain(world.database, ACTIONS[name], {})) for name in names}
    # Then
    for name, plan in plans.items():
        assert "Seq Scan on jobs" not in plan, f"{name}\n{plan}"
        assert "Seq Scan on chunks" not in plan, f"{name}\n{plan}"
