"""Chunks run by the real runner against PostgreSQL and a real engine process: what is written, and what a shutdown, a
lost lease, a cancelled job, a bad row or a dead engine leave behind."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from core.job import JobState
from core.openai.completion import CHAT_ENDPOINT, TEXT_ENDPOINT
from core.protocol import Failed, Generate
from db import jobs
from db.jobs import NewOnlineRequest
from tasks.services import ChunkRun
from tasks.upkeep import reconciler
from tasks.upkeep.intake import validate
from tests.engine_process import engine_process
from tests.polling import until
from tests.world import MODEL, World, changed, chat_line
from workers.chunks.run import EngineChunkRunner, RunnerOptions
from workers.engine_client import EngineClient, Sink, probe

DEADLINE_SECONDS = 60.0


@dataclass
class Node:
    """A worker of one thread and its engine, which answers after `delay` seconds."""

    world: World
    stack: ExitStack
    endpoint: str

    def start_engine(self, delay: float = 0.0, model: str = MODEL) -> "subprocess.Popen[bytes]":
        return self.stack.enter_context(
            engine_process(self.endpoint, "--model", f"{model}=null:{delay}", "--preload", model)
        )

    def runner(self, **options: object) -> EngineChunkRunner:
        client = EngineClient(self.endpoint)
        client.start()
        values = {
            "owner": "worker",
            "models": (MODEL,),
            "lease_seconds": 30.0,
            "write_interval_seconds": 0.02,
            "engine_wait_seconds": DEADLINE_SECONDS,
            "max_request_crashes": 2,
            **options,
        }
        runner_options = RunnerOptions(**values)  # type: ignore[arg-type]
        relay = self.world.services.relay
        runner = EngineChunkRunner(self.world.database, client, runner_options, self.world.stopping, relay)
        self.stack.callback(runner.close)
        return runner


@pytest.fixture
def node(world: World, tmp_path: Path) -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(world, stack, f"ipc://{tmp_path}/engine.sock")


def outcomes(world: World) -> dict[int, tuple[int | None, dict[str, object]]]:
    with world.database.begin() as session:
        rows = session.execute(text("SELECT index, status_code, body FROM outcomes ORDER BY index")).all()
    return {row[0]: (row[1], json.loads(row[2])) for row in rows}


def chunk(world: World) -> tuple[str, int, int, int]:
    """State, attempt, times handed back, crashes of the only chunk."""
    with world.database.begin() as session:
        row = session.execute(text("SELECT state, attempt, num_handed_back, num_crashes FROM chunks")).one()
    return row[0], row[1], row[2], row[3]


def serve_one(node: Node) -> ChunkRun:
    """Runs what people wait for until one of it has ended."""
    ended: list[ChunkRun] = []
    runner = node.runner()
    runner.serve_online(ended.extend)
    until(lambda: ended)
    return ended[0]


class InBackground:
    """Runs one chunk on a thread, so that the test can interfere."""

    def __init__(self, runner: EngineChunkRunner) -> None:
        self.results: list[ChunkRun | None] = []
        self._thread = threading.Thread(target=lambda: self.results.append(runner.run_batch()))
        self._thread.start()

    def result(self) -> ChunkRun | None:
        self._thread.join(DEADLINE_SECONDS)
        return self.results[0]


def test_a_chunk_runs_to_its_end(node: Node) -> None:
    # Given
    node.start_engine()
    job = node.world.start_job(10)
    # When
    run = node.runner().run_batch()
    # Then
    assert run is not None
    assert (run.job_public_id, run.is_done, run.is_closed) == (job.public_id, True, True)
    assert {status for status, _ in outcomes(node.world).values()} == {200}
    assert chunk(node.world)[0] == "done"


def test_nothing_waiting_is_nothing_done(node: Node) -> None:
    # Given
    node.start_engine()
    # When / Then
    assert node.runner().run_batch() is None


def test_without_an_engine_nothing_is_claimed(node: Node) -> None:
    # Given
    node.world.start_job(10)
    # When
    run = node.runner(engine_wait_seconds=0.1).run_batch()
    # Then
    assert run is None
    assert chunk(node.world) == ("waiting", 0, 0, 0)


def test_a_row_that_fails_fails_alone(node: Node) -> None:
    # Given a chunk whose second row has a prompt that no engine takes
    node.start_engine()
    rows = [
        {"custom_id": prompt, "method": "POST", "url": TEXT_ENDPOINT, "body": {"model": MODEL, "prompt": prompt[1:]}}
        for prompt in ("1one", "2", "3three")
    ]
    job = node.world.submit(b"\n".join(json.dumps(row).encode() for row in rows), endpoint=TEXT_ENDPOINT)
    assert validate(node.world.services, job.public_id)
    # When
    node.runner().run_batch()
    # Then
    assert [status for status, _ in outcomes(node.world).values()] == [200, 400, 200]
    assert chunk(node.world)[0] == "done"


def test_a_shutdown_writes_what_is_finished_and_hands_the_rest_back(node: Node) -> None:
    # Given a chunk that would run for a long time
    node.start_engine(delay=3600)
    node.world.start_job(10)
    running = InBackground(node.runner())
    until(lambda: chunk(node.world)[0] == "running")
    # When
    node.world.stopping.set()
    # Then
    run = running.result()
    assert run is not None
    assert not run.is_closed
    assert chunk(node.world) == ("waiting", 1, 1, 0)


def test_a_cancelled_job_ends_its_running_chunk(node: Node) -> None:
    # Given
    node.start_engine(delay=3600)
    job = node.world.start_job(10)
    running = InBackground(node.runner(lease_seconds=1.0))
    until(lambda: chunk(node.world)[0] == "running")
    # When
    with node.world.database.begin() as session:
        jobs.stop(session, job, JobState.CANCELLED)
    # Then
    run = running.result()
    assert run is not None
    assert run.is_closed
    assert not run.is_done
    assert chunk(node.world)[0] == "cancelled"


def test_a_worker_that_lost_its_lease_stops_without_a_trace(node: Node) -> None:
    # Given
    node.start_engine(delay=3600)
    node.world.start_job(10)
    running = InBackground(node.runner(lease_seconds=1.0))
    until(lambda: chunk(node.world)[0] == "running")
    # When somebody else gets the chunk
    with node.world.database.begin() as session:
        session.execute(text("UPDATE chunks SET lease_until = now() - interval '1 hour'"))
        session.execute(text("UPDATE chunks SET owner = 'heir', attempt = attempt + 1"))
    # Then
    run = running.result()
    assert run is not None
    assert not run.is_closed
    assert outcomes(node.world) == {}
    with node.world.database.begin() as session:
        assert session.execute(text("SELECT owner FROM chunks")).scalar() == "heir"


def test_after_an_engine_crash_the_chunk_waits_again_and_says_so(node: Node) -> None:
    # Given requests that have reached the engine
    engine = node.start_engine(delay=3600)
    node.world.start_job(10)
    running = InBackground(node.runner())
    until(
        lambda: (hello := probe(node.endpoint)) is not None and hello.stats.num_waiting + hello.stats.num_running == 10
    )
    # When the engine dies, and another one comes
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    node.start_engine()
    # Then
    assert running.result() is not None
    assert chunk(node.world) == ("waiting", 1, 0, 1)
    # And the next run answers everything
    node.runner().run_batch()
    assert len(outcomes(node.world)) == 10


def test_requests_that_take_the_engine_down_fail_alone_in_the_end(node: Node) -> None:
    # Given two poisonous questions far apart among others, and a supervisor that restarts the engine
    guilty = {13, 90}
    rows = [chat_line(f"row-{index}", "poison" if index in guilty else f"question {index}") for index in range(100)]
    job = node.world.submit(b"\n".join(rows))
    node.world.services = replace(node.world.services, settings=changed(node.world.services.settings, chunk_rows=100))
    assert validate(node.world.services, job.public_id)
    runner = node.runner(max_request_crashes=1)
    source = f"{MODEL}=null:0!poison"
    # When the chunk runs until nothing waits
    num_runs = 0
    while chunk(node.world)[0] == "waiting":
        num_runs += 1
        assert num_runs < 14
        engine = node.stack.enter_context(engine_process(node.endpoint, "--model", source, "--preload", MODEL))
        runner.run_batch()
        if engine.poll() is None and chunk(node.world)[0] == "waiting":
            engine.wait(DEADLINE_SECONDS)
    # Then everybody else has an answer
    found = outcomes(node.world)
    assert {index for index, (status, _) in found.items() if status != 200} == guilty
    assert len(found) == 100
    for index in guilty:
        assert found[index][0] == 500
        assert "engine_crashed" in json.dumps(found[index][1])


def test_an_innocent_chunk_that_shares_the_engine_with_a_poisonous_one_loses_nothing(node: Node) -> None:
    # Given a chunk with one poisonous question and one without, run at once
    poisonous = [chat_line(f"row-{index}", "poison" if index == 3 else f"question {index}") for index in range(10)]
    node.world.start(b"\n".join(poisonous), tenant="one")
    node.world.start_job(10, tenant="two")
    runner = node.runner(max_request_crashes=1)
    source = f"{MODEL}=null:0.05!poison"

    def states() -> set[str]:
        with node.world.database.begin() as session:
            return set(session.execute(text("SELECT state FROM chunks")).scalars())

    # When both run until nothing waits
    num_runs = 0
    while "waiting" in states():
        num_runs += 1
        assert num_runs < 14
        engine = node.stack.enter_context(engine_process(node.endpoint, "--model", source, "--preload", MODEL))
        both = [InBackground(runner), InBackground(runner)]
        for running in both:
            running.result()
        if engine.poll() is None and "waiting" in states():
            engine.send_signal(signal.SIGTERM)
            engine.wait(DEADLINE_SECONDS)
    # Then
    with node.world.database.begin() as session:
        failed = session.execute(text("SELECT index, body FROM outcomes WHERE status_code <> 200")).all()
        total = session.execute(text("SELECT count(*) FROM outcomes")).scalar()
    assert total == 20
    assert [row[0] for row in failed] == [3]
    assert "engine_crashed" in failed[0][1]


@pytest.mark.parametrize("preload", [("--preload", MODEL), ()], ids=["at the start", "at its first request"])
def test_a_model_that_cannot_be_loaded_leaves_its_rows_waiting(node: Node, preload: tuple[str, ...]) -> None:
    # Given an engine whose model has no files
    node.stack.enter_context(engine_process(node.endpoint, "--model", f"{MODEL}=/nowhere/at/all", *preload))
    node.world.start_job(10)
    # When
    run = node.runner(engine_wait_seconds=DEADLINE_SECONDS).run_batch()
    # Then
    assert run is None or not run.is_closed
    assert chunk(node.world)[0] == "waiting"
    assert outcomes(node.world) == {}


def test_leases_are_renewed_while_an_answer_takes_long(node: Node) -> None:
    # Given answers that take three times as long as a lease
    node.start_engine(delay=1.5)
    node.world.start_job(5)
    running = InBackground(node.runner(lease_seconds=0.5))
    # When the reconciler looks all the time
    until(lambda: reconciler.take_back(node.world.services) or running.results)
    # Then
    run = running.result()
    assert run is not None
    assert run.is_done
    with node.world.database.begin() as session:
        assert session.execute(text("SELECT max(attempt) FROM chunks")).scalar() == 1


def test_what_tenants_have_in_common_is_shared_within_a_tenant_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job of some tenant
    node.start_engine()
    node.world.start_job(3, tenant="somebody")
    sent: list[Generate] = []
    submit = EngineClient.submit

    def watched(client: EngineClient, requests: Sequence[Generate], sink: Sink) -> None:
        sent.extend(requests)
        submit(client, requests, sink)

    monkeypatch.setattr(EngineClient, "submit", watched)
    # When
    node.runner().run_batch()
    # Then
    assert [request.prefix_scope for request in sent] == ["somebody"] * 3


def test_a_request_that_never_arrived_is_sent_again_and_the_chunk_goes_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a link that loses the first request
    node.start_engine()
    node.world.start_job(10)
    lost: list[str] = []
    submit = EngineClient.submit

    def losing(client: EngineClient, requests: Sequence[Generate], sink: Sink) -> None:
        if not lost:
            lost.append(requests[0].id)
            sink(Failed(requests[0].id, "not_received", "the request never arrived", is_retryable=True))
            requests = requests[1:]
        assert lost[0] not in [request.id for request in requests]
        submit(client, requests, sink)

    monkeypatch.setattr(EngineClient, "submit", losing)
    # When
    run = node.runner().run_batch()
    # Then
    assert run is not None
    assert run.is_done
    assert {status for status, _ in outcomes(node.world).values()} == {200}
    assert chunk(node.world) == ("done", 1, 0, 0)


def test_an_online_job_ends_with_its_chunk_and_says_what_came_of_it(node: Node) -> None:
    # Given
    node.start_engine()
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "What is a list?"}]})
    request = NewOnlineRequest(endpoint=CHAT_ENDPOINT, model=MODEL, body=body, expires_after=timedelta(minutes=5))
    with node.world.database.begin() as session:
        job = jobs.create_online(session, request)
    # When
    run = serve_one(node)
    # Then
    assert run is not None
    assert run.is_done
    assert run.is_completed
    assert node.world.job(job.public_id).state == JobState.COMPLETED
    assert run.end is not None
    told = {outcome.index: (outcome.status_code, json.loads(outcome.body)) for outcome in run.end.outcomes}
    assert told == outcomes(node.world)


def test_an_online_job_that_is_being_stopped_is_not_completed(node: Node) -> None:
    # Given
    node.start_engine()
    body = json.dumps({"model": MODEL, "messages": []})  # refused before the engine hears of it
    request = NewOnlineRequest(endpoint=CHAT_ENDPOINT, model=MODEL, body=body, expires_after=timedelta(minutes=5))
    with node.world.database.begin() as session:
        job = jobs.create_online(session, request)
        session.execute(text("UPDATE jobs SET ending = 'expired'"))
    # When
    run = serve_one(node)
    # Then
    assert run is not None
    assert run.is_closed
    assert (run.is_completed, run.end) == (False, None)
    assert node.world.job(job.public_id).state == JobState.IN_PROGRESS
