"""The API on a real port and a worker with a real engine process behind it, in this process and without a broker: the
worker looks for work instead of being told. For tests of what clients see.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from core.job import JobState, ServiceClass
from db.tables import JobRow
from tasks.inference import run_chunk
from tasks.upkeep.finalizing import finalize
from tasks.upkeep.intake import validate
from tests.engine_process import engine_process
from tests.polling import until
from tests.serving import serving
from tests.world import MODEL, World
from workers.chunks.run import EngineChunkRunner, RunnerOptions
from workers.engine_client import EngineClient

LOOK_SECONDS = 0.005
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Answering:
    world: World
    url: str
    client: OpenAI

    def finish(self, batch_id: str) -> JobRow:
        """Validates a batch and waits for its end, as the upkeep worker would see to it."""
        assert validate(self.world.services, batch_id) or self.world.job(batch_id).state == JobState.FAILED

        def has_ended() -> bool:
            finalize(self.world.services, batch_id)
            return self.world.job(batch_id).state not in (JobState.IN_PROGRESS, JobState.FINALIZING)

        until(has_ended)
        return self.world.job(batch_id)


@pytest.fixture
def answering(world: World, tmp_path: Path) -> Iterator[Answering]:
    with answer(world, f"ipc://{tmp_path}/engine.sock", {MODEL: "null:"}) as started:
        yield started


@contextmanager
def answer(world: World, endpoint: str, sources: dict[str, str]) -> Iterator[Answering]:
    """sources: name -> source of the models of the engine."""
    arguments = [word for name, source in sources.items() for word in ("--model", f"{name}={source}")]
    with ExitStack() as stack:
        stack.enter_context(engine_process(endpoint, *arguments, "--preload", next(iter(sources)), "--threads", "1"))
        world = stack.enter_context(_worker(world, endpoint, tuple(sources)))
        url = stack.enter_context(serving(world.services.settings))
        client = stack.enter_context(OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0))
        yield Answering(world, url, client)


@contextmanager
def _worker(world: World, endpoint: str, models: tuple[str, ...]) -> Iterator[World]:
    client = EngineClient(endpoint)
    client.start()
    options = RunnerOptions(
        owner="worker",
        models=models,
        lease_seconds=30.0,
        write_interval_seconds=0.02,
        engine_wait_seconds=DEADLINE_SECONDS,
        max_request_crashes=2,
    )
    stopping = threading.Event()
    # whoever made the world closes the runner
    world = world.with_runner(EngineChunkRunner(world.database, client, options, stopping, world.services.relay))
    threads = [threading.Thread(target=_work, args=(stopping, kind), name=f"{kind} worker") for kind in ServiceClass]
    for thread in threads:
        thread.start()
    try:
        yield world
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def _work(stopping: threading.Event, service_class: ServiceClass) -> None:
    while not stopping.wait(LOOK_SECONDS):
        run_chunk("", "", service_class.value)
