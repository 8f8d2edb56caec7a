"""Many online requests on one thread of a worker: claimed together, written together, and each ended by itself."""

import json
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import text

from core.job import ChunkState, JobState, ServiceClass
from core.openai.completion import CHAT_ENDPOINT
from db import chunks, jobs, online
from db.chunks import Lease
from db.jobs import NewOnlineRequest
from db.online import WholeEnd
from db.tables import JobRow
from tasks.services import ChunkRun
from tests.integration.test_chunk_run import Node, node
from tests.polling import until
from tests.world import MODEL, World, success
from workers.chunks.run import EngineChunkRunner
from workers.engine_client import probe

__all__ = ["node"]


def ask(world: World, num_jobs: int, **body: object) -> list[JobRow]:
    """Online requests that wait."""
    asked = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **body})
    request = NewOnlineRequest(endpoint=CHAT_ENDPOINT, model=MODEL, body=asked, expires_after=timedelta(minutes=5))
    with world.database.begin() as session:
        return [jobs.create_online(session, request) for _ in range(num_jobs)]


def begin(node: Node, num_jobs: int) -> tuple[EngineChunkRunner, list[JobRow], list[ChunkRun]]:
    """A runner whose engine has all of so many requests and takes for ever; and a list of those that ended."""
    node.start_engine(delay=600.0)
    asked = ask(node.world, num_jobs)
    runner, ended = node.runner(), list[ChunkRun]()
    runner.serve_online(ended.extend)
    until(lambda: num_running(node) == num_jobs)
    return runner, asked, ended


def num_running(node: Node) -> int:
    hello = probe(node.endpoint)
    return 0 if hello is None else hello.stats.num_running


def states(world: World) -> dict[str, str]:
    with world.database.begin() as session:
        return {row[0]: row[1] for row in session.execute(text("SELECT public_id, state FROM jobs"))}


def claim(world: World, limit: int = 10, owner: str = "w") -> list[Lease]:
    return [
        lease
        for lease, _ in chunks.claim_online(
            world.database, owner=owner, models=[MODEL], lease_seconds=60.0, limit=limit
        )
    ]


def test_many_requests_wait_for_the_engine_at_the_same_time(node: Node) -> None:
    # Given an engine that takes its time, and far more requests than a claim takes
    node.start_engine(delay=0.5)
    asked = ask(node.world, 100)
    ended: list[ChunkRun] = []
    runner = node.runner()
    # When: one message for all of them
    runner.serve_online(ended.extend)
    until(lambda: len(ended) == len(asked))
    # Then
    assert {run.job_public_id for run in ended} == {job.public_id for job in asked}
    assert all(run.is_completed and run.end is not None for run in ended)
    assert set(states(node.world).values()) == {JobState.COMPLETED}
    with node.world.database.begin() as session:
        busiest = text(
            "SELECT max(n) FROM (SELECT count(*) AS n FROM outcomes a JOIN outcomes b ON b.finished_at "
            "- make_interval(secs => b.total_seconds) <= a.finished_at - make_interval(secs => a.total_seconds) "
            "AND b.finished_at >= a.finished_at - make_interval(secs => a.total_seconds) GROUP BY a.job_id) AS s"
        )
        assert session.execute(busiest).scalar_one() > 16


def test_a_shutdown_hands_back_what_runs(node: Node) -> None:
    # Given
    _, (job,), ended = begin(node, 1)
    # When
    node.stack.close()
    # Then
    assert [(run.is_done, run.is_closed) for run in ended] == [(False, False)]
    assert states_of_chunks(node.world) == {ChunkState.WAITING}
    assert states(node.world)[job.public_id] == JobState.IN_PROGRESS


def states_of_chunks(world: World) -> set[str]:
    with world.database.begin() as session:
        return set(session.scalars(text("SELECT state FROM chunks")))


def test_a_worker_that_is_given_what_it_still_runs_begins_anew(node: Node) -> None:
    # Given a worker that stood still for longer than its lease
    runner, (job,), ended = begin(node, 1)
    with node.world.database.begin() as session:
        session.execute(text("UPDATE chunks SET state = 'waiting', owner = NULL, lease_until = NULL"))
    # When
    runner.serve_online(ended.extend)
    until(lambda: states_of_chunks(node.world) == {ChunkState.RUNNING})
    # Then the engine has it once
    until(lambda: num_running(node) == 1)
    with node.world.database.begin() as session:
        assert session.execute(text("SELECT attempt FROM chunks")).scalar_one() == 2
        jobs.stop(session, job, JobState.CANCELLED)
    until(lambda: any(run.is_closed for run in ended))


def test_a_connection_that_broke_once_keeps_no_later_end_from_being_written(node: Node) -> None:
    # Given two requests, and a connection that breaks while one of them is handed back
    _, (stopped, other), ended = begin(node, 2)
    with node.world.database.begin() as session:
        session.execute(text("SELECT FROM chunks WHERE job_id = :job FOR UPDATE"), {"job": stopped.id})
        with node.world.database.begin() as another:
            jobs.stop(another, another.merge(stopped), JobState.CANCELLED)
        until(lambda: break_what_waits_to_hand_back(node.world))
        until(lambda: ended)
    # When
    node.stack.close()
    # Then
    assert [(run.job_public_id, run.is_closed) for run in ended] == [
        (stopped.public_id, False),
        (other.public_id, False),
    ]
    with node.world.database.begin() as session:
        row = session.execute(text("SELECT state, num_handed_back FROM chunks WHERE job_id = :job"), {"job": other.id})
        assert tuple(row.one()) == (ChunkState.WAITING, 1)


def break_what_waits_to_hand_back(world: World) -> bool:
    """Whether there was something."""
    waiting = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND wait_event_type = 'Lock' AND query LIKE '%num_handed_back%' AND pid <> pg_backend_pid()"
    )
    with world.database.begin() as session:
        return bool(session.execute(waiting).all())


def test_a_cancelled_request_ends_while_the_others_go_on(node: Node) -> None:
    # Given
    _, (stopped, other), ended = begin(node, 2)
    # When
    with node.world.database.begin() as session:
        jobs.stop(session, stopped, JobState.CANCELLED)
    until(lambda: ended)
    # Then
    assert [(run.job_public_id, run.is_done, run.is_closed) for run in ended] == [(stopped.public_id, False, True)]
    assert states(node.world)[other.public_id] == JobState.IN_PROGRESS


def test_without_an_engine_what_waits_goes_on_waiting(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    # Given
    ask(node.world, 1)
    runner = node.runner(engine_wait_seconds=0.1)
    # When
    runner.serve_online(lambda _: None)
    until(lambda: "no engine is ready" in caplog.text)
    # Then
    assert states_of_chunks(node.world) == {ChunkState.WAITING}


def test_a_worker_that_ends_before_it_could_claim_wakes_another(node: Node) -> None:
    # Given a worker that was rung for while its engine was away
    ask(node.world, 1)
    told: list[list[ChunkRun]] = []
    node.runner().serve_online(lambda runs: told.append(list(runs)))
    # When
    node.stack.close()
    # Then it says that something is left
    assert told == [[]]
    assert states_of_chunks(node.world) == {ChunkState.WAITING}


def test_a_claim_takes_the_best_and_no_more_than_it_may(world: World) -> None:
    # Given
    first, urgent, third = ask(world, 3)
    with world.database.begin() as session:
        jobs.set_priority(session, urgent, 9)
    # When
    two = chunks.claim_online(world.database, owner="w", models=[MODEL], lease_seconds=60.0, limit=2)
    # Then
    assert [lease.job_public_id for lease, _ in two] == [urgent.public_id, first.public_id]
    assert [(lease.attempt, lease.owner, lease.service_class) for lease, _ in two] == [
        (1, "w", ServiceClass.ONLINE)
    ] * 2
    assert [[request.index for request in asked] for _, asked in two] == [[0], [0]]
    assert json.loads(two[0][1][0].body)["model"] == MODEL
    assert [lease.job_public_id for lease in claim(world)] == [third.public_id]
    assert claim(world) == []


def test_a_second_attempt_is_given_only_what_has_no_outcome(world: World) -> None:
    # Given a request of three prompts, of which one was answered
    request = NewOnlineRequest(
        endpoint=CHAT_ENDPOINT, model=MODEL, body="{}", more_bodies=("{}", "{}"), expires_after=timedelta(minutes=5)
    )
    with world.database.begin() as session:
        jobs.create_online(session, request)
    (lease,) = claim(world)
    world.write(lease, [success(1)])
    with world.database.begin() as session:
        chunks.hand_back(session, lease)
    # When
    ((again, asked),) = chunks.claim_online(world.database, owner="w", models=[MODEL], lease_seconds=60.0, limit=9)
    # Then
    assert (again.attempt, [request.index for request in asked]) == (2, [0, 2])


def end(world: World, leases: Sequence[Lease], owner: str = "w") -> dict[int, bool]:
    return online.end_whole(world.database, owner, [WholeEnd(lease, (success(0),)) for lease in leases])


def test_answers_that_are_written_together_are_those_that_are_still_leased(world: World) -> None:
    # Given one whose lease ran out and was taken, and one whose job is being stopped
    kept, lost, stopping = ask(world, 3)
    leases = claim(world)
    with world.database.begin() as session:
        session.execute(
            text("UPDATE chunks SET lease_until = now() - interval '1 s' WHERE id = :id"), {"id": leases[1].chunk_id}
        )
        chunks.expire(session)
        jobs.stop(session, stopping, JobState.CANCELLED)
    (taken,) = claim(world, owner="another")
    # When
    written = end(world, leases)
    # Then
    assert written == {leases[0].chunk_id: True, leases[2].chunk_id: False}
    assert states(world) == {
        kept.public_id: JobState.COMPLETED,
        lost.public_id: JobState.IN_PROGRESS,
        stopping.public_id: JobState.CANCELLING,
    }
    assert end(world, leases) == {}
    assert end(world, [taken], owner="another") == {taken.chunk_id: True}


def test_what_is_written_together_is_counted_as_if_it_were_written_alone(world: World) -> None:
    # Given
    together, alone = ask(world, 2)
    one, other = claim(world)
    # When
    end(world, [one])
    with world.database.begin() as session:
        chunks.write(session, other, [success(0)])
        assert online.complete(session, other.job_id)
    # Then
    counts = ("state", "num_completed", "num_failed", "prompt_tokens", "completion_tokens", "cached_tokens")
    ends = [world.job(job.public_id) for job in (together, alone)]
    assert [getattr(ends[0], name) for name in counts] == [getattr(ends[1], name) for name in counts]
    for table, columns in (
        ("chunks", "state, num_completed, num_failed, prompt_tokens, completion_tokens, cached_tokens"),
        ("outcomes", "index, attempt, status_code, body, prompt_tokens, completion_tokens, device_seconds"),
        ("usage_entries", "tenant, key_id, model, num_requests, num_failed, prompt_tokens, completion_tokens"),
    ):
        with world.database.begin() as session:
            rows = session.execute(text(f"SELECT {columns} FROM {table}")).all()
        assert len(rows) == 2, table
        assert rows[0] == rows[1], table
