"""Jobs that are no inference over the real servers and a real engine process: submitted by HTTP, claimed by the node,
run, watched, stopped."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_api
from core.errors import Interrupted, MillraceError, ModelFailure, Unavailable
from core.job import JobKind
from core.protocol import Spent
from db.native.heavy import Claimant
from db.tables import ArtifactRow
from tasks import heavy as heavy_tasks
from tasks import services as installed
from tasks.heavy import run_heavy
from tasks.queues import heavy_queue
from tasks.upkeep import reconciler
from tests.engine_process import engine_process
from tests.polling import until
from tests.world import MODEL, World
from workers.engine_client import probe
from workers.heavy.benchmark import BenchmarkWork
from workers.heavy.child import run_engine_job
from workers.heavy.engine_access import EngineAccess
from workers.heavy.runner import MAX_ATTEMPTS, HeavyJobRunner
from workers.heavy.warming import WarmingWork
from workers.heavy.work import Result, Talk, Task, Work

Json = dict[str, object]


@dataclass
class Node:
    """The heavy worker of a node, run by hand, and an engine."""

    world: World
    client: TestClient
    endpoint: str
    stack: ExitStack
    works: dict[JobKind, Work] = field(default_factory=dict)

    def start_engine(self, delay: float = 0.0) -> None:
        self.stack.enter_context(engine_process(self.endpoint, "--model", f"{MODEL}=null:{delay}", "--preload", MODEL))

    def install(self, node: str = "node", lease_seconds: float = 30.0) -> None:
        claimant = Claimant(f"worker@{node}", node, "cpu", (MODEL,), lease_seconds)
        runner = HeavyJobRunner(self.world.database, self.works, claimant, self.world.stopping)
        installed.install(replace(self.world.services, heavy=runner))

    def submit(self, **body: object) -> str:
        response = self.client.post("/api/v1/jobs", json={"model": MODEL, **body})
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    def job(self, job: str) -> Json:
        shown: Json = self.client.get(f"/api/v1/jobs/{job}").json()
        return shown

    def used(self) -> list[Json]:
        lines: list[Json] = self.client.get("/api/v1/usage").json()["data"]
        return lines

    def run_in_background(self) -> threading.Thread:
        thread = threading.Thread(target=run_heavy, args=("hint",))
        thread.start()
        return thread


@pytest.fixture
def node(world: World, tmp_path: Path) -> Iterator[Node]:
    api = create_api(world.services.settings)
    with ExitStack() as stack, TestClient(api, base_url="http://127.0.0.1") as client:
        endpoint = f"ipc://{tmp_path}/engine.sock"
        engine = EngineAccess(endpoint, wait_seconds=60.0)
        node = Node(world, client, endpoint, stack)
        node.works = {JobKind.WARMING: WarmingWork(engine), JobKind.BENCHMARK: BenchmarkWork(engine)}
        node.install()
        yield node


def test_warming_loads_a_model_and_runs_prompts(node: Node) -> None:
    # Given
    node.start_engine()
    job = node.submit(kind="warming", prompts=["one two", "three"])
    # When
    run_heavy(job)
    # Then
    shown = node.job(job)
    assert shown["state"] == "completed"
    assert shown["device"] == "cpu@node"
    result = shown["result"]
    assert isinstance(result, dict)
    assert (result["num_prompts"], result["num_tokens"]) == (2, 5)
    assert result["seconds"] >= result["load_seconds"] >= 0


def test_a_benchmark_reports_rates_and_percentiles(node: Node) -> None:
    # Given
    node.start_engine()
    job = node.submit(kind="benchmark", workload="short", num_requests=20, concurrency=4)
    # When
    run_heavy(job)
    # Then
    result = node.job(job)["result"]
    assert isinstance(result, dict)
    assert result["workload"] == {"prompt_tokens": 16, "answer_tokens": 16, "num_requests": 20, "concurrency": 4}
    assert (result["prompt_tokens"], result["completion_tokens"], result["device"]) == (320, 20, "cpu")
    assert result["completion_tokens_per_second"] > 0
    assert set(result["ttft_seconds"]) == {"p50", "p95", "p99"}
    (used,) = node.used()
    assert (used["num_requests"], used["prompt_tokens"], used["completion_tokens"]) == (1, 320, 20)


def test_a_job_that_runs_shows_its_progress_and_can_be_cancelled(node: Node) -> None:
    # Given an engine that answers the second prompt only after an hour
    node.start_engine(delay=3600.0)
    job = node.submit(kind="warming", prompts=["slow"])
    running = node.run_in_background()
    until(lambda: "prompt 1 of 1" in str(node.job(job)["progress"]))
    until(lambda: (hello := probe(node.endpoint)) is not None and hello.stats.num_running == 1)
    assert node.job(job)["state"] == "in_progress"
    # When
    assert node.client.delete(f"/api/v1/jobs/{job}").status_code == 202
    running.join()
    # Then
    assert node.job(job)["state"] == "cancelled"
    assert node.job(job)["result"] is None
    assert [used["prompt_tokens"] for used in node.used()] == [1], "what it had in flight was withdrawn and counted"


def test_a_worker_that_shuts_down_hands_its_job_back(node: Node) -> None:
    # Given
    node.start_engine(delay=3600.0)
    job = node.submit(kind="warming", prompts=["slow"])
    running = node.run_in_background()
    until(lambda: "prompt" in str(node.job(job)["progress"]))
    # When
    node.world.stopping.set()
    running.join()
    # Then
    assert node.job(job)["state"] == "in_progress"
    assert chunk(node.world) == ("waiting", 1, 1)


def test_a_job_whose_worker_died_runs_again_elsewhere(node: Node) -> None:
    # Given a worker that wrote nothing for longer than its lease
    job = node.submit(kind="warming")
    with node.world.database.begin() as session:
        session.execute(
            text(
                "UPDATE chunks SET state = 'running', owner = 'dead', attempt = 1, lease_until = now() - interval '1s'"
            )
        )
    # When
    reconciler.take_back(node.world.services)
    node.start_engine()
    run_heavy(job)
    # Then
    assert node.job(job)["state"] == "completed"


def chunk(world: World) -> tuple[str, int, int]:
    """State, attempt, times handed back of the only chunk."""
    with world.database.begin() as session:
        row = session.execute(text("SELECT state, attempt, num_handed_back FROM chunks")).one()
    return row[0], row[1], row[2]


@dataclass
class Failing:
    """A work that cannot be done."""

    error: Exception

    def __call__(self, task: Task, talk: Talk) -> Result:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelFailure("no room"), "model_failure"),
        (ZeroDivisionError("a fault"), "model_failure"),
    ],
)
def test_a_job_that_cannot_be_done_has_failed_and_says_why(node: Node, error: Exception, code: str) -> None:
    # Given
    node.works[JobKind.WARMING] = Failing(error)
    job = node.submit(kind="warming")
    # When
    run_heavy(job)
    # Then
    shown = node.job(job)
    assert shown["state"] == "failed"
    errors = shown["errors"]
    assert isinstance(errors, dict)
    assert (errors["data"][0]["code"], str(error) in errors["data"][0]["message"]) == (code, True)


def test_what_another_try_may_mend_is_tried_again_but_not_for_ever(node: Node) -> None:
    # Given
    node.works[JobKind.WARMING] = Failing(Unavailable("the engine is away"))
    job = node.submit(kind="warming")
    # When
    for attempt in range(MAX_ATTEMPTS):
        assert node.job(job)["state"] == "in_progress", attempt
        run_heavy(job)
    # Then
    assert node.job(job)["state"] == "failed"


def test_a_job_whose_workers_died_is_given_up_before_it_is_tried(node: Node) -> None:
    # Given a job that took its worker along each time
    node.works[JobKind.WARMING] = Failing(ZeroDivisionError("it was tried"))
    job = node.submit(kind="warming")
    with node.world.database.begin() as session:
        session.execute(text("UPDATE chunks SET attempt = :attempt"), {"attempt": MAX_ATTEMPTS})
    # When
    run_heavy(job)
    # Then
    shown = node.job(job)
    assert shown["state"] == "failed"
    assert "died 3 times" in str(shown["errors"])


class Computing:
    """Takes the device for two seconds, and then ends as it is told."""

    def __init__(self, error: MillraceError | None) -> None:
        self._error = error

    def __call__(self, task: Task, talk: Talk) -> Result:
        talk.spend(Spent(device_seconds=2.0))
        if self._error is not None:
            raise self._error
        return Result({})


@pytest.mark.parametrize(("error", "requests"), [(None, (1, 0)), (ModelFailure("broken"), (1, 1))])
def test_the_device_that_a_job_had_is_accounted_however_it_ends(
    node: Node, error: MillraceError | None, requests: tuple[int, int]
) -> None:
    # Given
    node.works[JobKind.WARMING] = Computing(error)
    # When
    run_heavy(node.submit(kind="warming"))
    # Then
    (used,) = node.used()
    assert (used["num_requests"], used["num_failed"], used["device_seconds"]) == (*requests, 2.0)


def test_a_job_that_runs_again_is_accounted_once(node: Node) -> None:
    # Given a job whose first attempt was of no use
    node.works[JobKind.WARMING] = Computing(Unavailable("away"))
    job = node.submit(kind="warming")
    run_heavy(job)
    assert node.used() == []
    # When
    node.works[JobKind.WARMING] = Computing(None)
    run_heavy(job)
    # Then
    (used,) = node.used()
    assert (used["num_requests"], used["device_seconds"]) == (1, 2.0)


@dataclass
class Making:
    """A work whose result cannot be kept."""

    name: str

    def __call__(self, task: Task, talk: Talk) -> Result:
        row = ArtifactRow(
            id=task.job_public_id,
            tenant=task.tenant,
            name=self.name,
            kind="quantization",
            source_model=task.model,
            node="node",
            directory="/nowhere",
            num_bytes=1,
            job_public_id=task.job_public_id,
            details={},
        )
        return Result({}, row)


def test_a_job_whose_result_cannot_be_kept_has_failed(node: Node) -> None:
    # Given
    node.works[JobKind.WARMING] = Making("a\0b")
    job = node.submit(kind="warming")
    # When
    run_heavy(job)
    # Then
    shown = node.job(job)
    assert shown["state"] == "failed"
    assert "cannot be kept" in str(shown["errors"])


def test_a_job_for_one_node_is_left_alone_by_the_others(node: Node) -> None:
    # Given
    job = node.submit(kind="warming", node="node")
    node.works[JobKind.WARMING] = Failing(ModelFailure("ran"))
    # When
    node.install("other")
    run_heavy(job)
    # Then
    assert node.job(job)["state"] == "in_progress"
    node.install("node")
    run_heavy(job)
    assert node.job(job)["state"] == "failed"


def test_a_model_or_node_that_is_not_there_is_refused(node: Node) -> None:
    for body in ({"model": "nobody/has-it"}, {"model": MODEL, "node": "nowhere"}):
        response = node.client.post("/api/v1/jobs", json={"kind": "warming", **body})
        assert response.status_code == 404
    assert node.client.get("/api/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("which", [{"queue": "heavy"}, {"model": MODEL}])
def test_a_job_whose_queue_or_model_is_paused_waits_until_it_is_resumed(node: Node, which: Json) -> None:
    # Given
    node.works[JobKind.WARMING] = Computing(None)
    node.client.post("/api/v1/queues/pause", json=which)
    # When
    job = node.submit(kind="warming")
    node.world.services.redis.delete(heavy_queue("node"))
    run_heavy(job)
    # Then
    assert node.job(job)["state"] == "in_progress"
    assert heavy_tasks.wake_nodes(node.world.services) == 0, "nobody is woken for nothing"
    # When
    node.client.post("/api/v1/queues/resume", json=which)
    assert heavy_tasks.wake_nodes(node.world.services) == 1
    run_heavy(job)
    # Then
    assert node.job(job)["state"] == "completed"


def test_lost_messages_are_sent_again_but_no_more_than_the_window(node: Node) -> None:
    # Given
    for _ in range(5):
        node.submit(kind="warming")
    node.world.services.redis.delete(heavy_queue("node"))
    # When
    sent = heavy_tasks.wake_nodes(node.world.services) + heavy_tasks.wake_nodes(node.world.services)
    # Then
    assert sent == heavy_tasks.NODE_WINDOW


def test_a_child_ends_with_the_job(tmp_path: Path) -> None:
    # Given a job that was stopped while its process started
    talk = Talk()
    talk.stop.set()
    # When
    with pytest.raises(Interrupted):
        run_engine_job(["quantize", "--model", "x", "--method", "nf4", "--out", str(tmp_path / "out")], talk)
    # Then
    assert [child for child in psutil.Process().children() if "engine.jobs" in child.cmdline()] == []


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelFailure, match="invalid choice"):
        run_engine_job(["quantize", "--model", "x", "--method", "nf5", "--out", str(tmp_path / "out")], Talk())


def test_a_job_that_runs_when_its_queue_is_paused_is_shown_and_goes_on_to_its_end(node: Node) -> None:
    # Given
    go = threading.Event()

    def work(task: Task, talk: Talk) -> Result:
        go.wait()
        return Result({})

    node.works[JobKind.WARMING] = work
    job = node.submit(kind="warming")
    running = node.run_in_background()
    until(lambda: chunk(node.world)[0] == "running")
    # When
    held = node.client.post("/api/v1/queues/pause", json={"queue": "heavy"}).json()
    go.set()
    running.join()
    # Then
    expected = {"queue": "heavy", "model": MODEL, "num_rows": 1, "num_jobs": 1, "jobs": [job]}
    assert held["still_running"] == [expected]
    assert node.job(job)["state"] == "completed"
