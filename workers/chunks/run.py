"""The chunk runner of a device's worker: waits for the engine, claims chunks, and sees them through."""

import logging
import random
import threading
import time
from collections.abc import Callable

from core.job import ServiceClass
from core.protocol import MODEL_FAILED, Hello
from db import chunks
from db.chunks import Lease
from db.connection import Database
from tasks.services import ChunkRun, Close, Relay
from workers.chunks.bulk import BulkRun
from workers.chunks.deltas import Deltas
from workers.chunks.execution import Execution, RunnerOptions
from workers.chunks.keeper import LeaseKeeper
from workers.chunks.online import OnlineServer, OnlineTools
from workers.engine_client import EngineClient

__all__ = ["EngineChunkRunner", "RunnerOptions"]

logger = logging.getLogger(__name__)

LOAD_AGAIN_SECONDS = 10.0
REFUSED_SECONDS = 0.5


class EngineChunkRunner:
    """`run_batch` and `serve_online` may be called by many threads at once; `close` ends the threads that they start.
    chance: [0, 1)."""

    def __init__(
        self,
        database: Database,
        engine: EngineClient,
        options: RunnerOptions,
        stopping: threading.Event,
        relay: Relay,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._engine = engine
        self._options = options
        self._stopping = stopping
        self._relay = relay
        self._chance = chance
        self._asked_at: dict[str, float] = {}
        self._keeper = LeaseKeeper(database, options.owner, options.lease_seconds)
        self._keeper.start()
        tools = OnlineTools(database, engine, self._keeper, self._execution, stopping, chance)
        self._online = OnlineServer(tools, options)

    def model_kinds(self) -> dict[str, str]:
        return self._engine.kinds()

    def hello(self) -> Hello | None:
        return self._engine.hello

    def close(self) -> None:
        self._online.close()
        self._keeper.close()
        self._engine.close()

    def serve_online(self, close: Close) -> None:
        """People are told of a model that cannot be loaded, so nothing is asked of the engine first."""
        self._online.ring(close)

    def run_batch(self) -> ChunkRun | None:
        hello = self._engine.wait_ready(self._options.engine_wait_seconds)
        models = self._usable_models(hello)
        if hello is None or not models or self._stopping.is_set():
            logger.warning("no engine is ready: the chunk stays where it is", extra={"event": "engine.away"})
            return None
        lease = self._claim(models)
        if lease is None:
            return None
        execution = self._execution(lease)
        try:
            run = BulkRun(self._database, self._engine, self._options, self._stopping, execution).run(hello)
        finally:
            self._keeper.release(execution.watch)
        if execution.was_refused:  # by what it has of a life before, as a rule: not to be asked in a hurry
            self._stopping.wait(REFUSED_SECONDS)
        return run

    def _execution(self, lease: Lease) -> Execution:
        """Its lease is kept from now on."""
        deltas = Deltas(self._relay, lease.job_public_id, lease.attempt)
        return Execution(lease, self._keeper.hold(lease), self._options, deltas, self._chance)

    def _claim(self, models: list[str]) -> Lease | None:
        with self._database.begin() as session:
            return chunks.claim(
                session,
                owner=self._options.owner,
                service_class=ServiceClass.BATCH.value,
                models=models,
                lease_seconds=self._options.lease_seconds,
                takes_oldest=self._chance() < self._options.oldest_claim_fraction,
            )

    def _usable_models(self, hello: Hello | None) -> list[str]:
        """Rows of a model that cannot be loaded wait, and the engine is asked to try again."""
        failed = {model.name for model in hello.models if model.state == MODEL_FAILED} if hello else set()
        self._ask_for(failed)
        return [name for name in self._options.models if name not in failed]

    def _ask_for(self, models: set[str]) -> None:
        now = time.monotonic()
        for name in models:
            if now - self._asked_at.get(name, float("-inf")) >= LOAD_AGAIN_SECONDS:
                self._asked_at[name] = now
                self._engine.load(name)
