"""The chunk runner of a device's worker: waits for the engine, claims a chunk, and sees it through."""

import logging
import random
import threading
import time
from collections.abc import Callable

from core.job import ServiceClass
from core.protocol import MODEL_FAILED, Hello
from db import chunks
from db.chunks import Lease, Request
from db.connection import Database
from tasks.services import ChunkRun, Relay
from workers.chunks.deltas import Deltas
from workers.chunks.execution import Execution, RunnerOptions, Tools
from workers.chunks.keeper import LeaseKeeper, Watch
from workers.engine_client import EngineClient

__all__ = ["EngineChunkRunner", "RunnerOptions"]

logger = logging.getLogger(__name__)

LOAD_AGAIN_SECONDS = 10.0


class EngineChunkRunner:
    """`run` may be called by many threads at once; `close` ends the threads that it starts.  chance: [0, 1)."""

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

    def model_kinds(self) -> dict[str, str]:
        return self._engine.kinds()

    def hello(self) -> Hello | None:
        return self._engine.hello

    def close(self) -> None:
        self._keeper.close()
        self._engine.close()

    def run(self, service_class: ServiceClass) -> ChunkRun | None:
        hello = self._engine.wait_ready(self._options.engine_wait_seconds)
        models = self._usable_models(hello, service_class)
        if hello is None or not models or self._stopping.is_set():
            logger.warning("no engine is ready: the chunk stays where it is", extra={"event": "engine.away"})
            return None
        claimed = self._claim(service_class, models)
        if claimed is None:
            return None
        lease, requests = claimed
        watch = self._keeper.hold(lease)
        try:
            return self._execution(lease, watch, requests).run(hello)
        finally:
            self._keeper.release(watch)

    def _execution(self, lease: Lease, watch: Watch, requests: list[Request] | None) -> Execution:
        deltas = Deltas(self._relay, lease.job_public_id, lease.attempt)
        tools = Tools(self._database, self._engine, deltas, self._stopping, self._chance)
        return Execution(tools, self._options, lease, watch, requests)

    def _claim(self, service_class: ServiceClass, models: list[str]) -> tuple[Lease, list[Request] | None] | None:
        """With its requests where people wait and they are few; None instead of many, which would hold up others who
        claim."""
        with self._database.begin() as session:
            lease = chunks.claim(
                session,
                owner=self._options.owner,
                service_class=service_class.value,
                models=models,
                lease_seconds=self._options.lease_seconds,
                takes_oldest=self._chance() < self._options.oldest_claim_fraction,
            )
            if lease is None:
                return None
            is_online = service_class is ServiceClass.ONLINE
            return lease, chunks.unfinished(session, lease) if is_online else None

    def _usable_models(self, hello: Hello | None, service_class: ServiceClass) -> list[str]:
        """Bulk rows of a model that cannot be loaded wait, and the engine is asked to try again; people are told."""
        if service_class is ServiceClass.ONLINE:
            return list(self._options.models)
        failed = {model.name for model in hello.models if model.state == MODEL_FAILED} if hello else set()
        self._ask_for(failed)
        return [name for name in self._options.models if name not in failed]

    def _ask_for(self, models: set[str]) -> None:
        now = time.monotonic()
        for name in models:
            if now - self._asked_at.get(name, float("-inf")) >= LOAD_AGAIN_SECONDS:
                self._asked_at[name] = now
                self._engine.load(name)
