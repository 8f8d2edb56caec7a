"""Runs chunks: claims one, streams its unfinished requests to the engine, and writes the answers in groups under the
lease. The loop renews the lease by writing; whatever ends it early writes what is finished and hands the rest back.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from core.errors import InvalidRequest, LeaseLost, Unavailable
from core.job import ServiceClass
from core.openai.completion import parse_body
from core.protocol import (
    BULK_PRIORITY,
    MODEL_FAILED,
    ONLINE_PRIORITY,
    Delta,
    Embedded,
    Failed,
    Finished,
    Generate,
    Hello,
)
from db import chunks
from db.chunks import Crash, Lease, Outcome, Request
from db.connection import Database
from tasks.services import ChunkRun, Relay
from workers.chunks import outcome
from workers.chunks.deltas import Deltas
from workers.engine_client import ENGINE_LOST, Answer, EngineClient

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3
RETRY_SECONDS = 0.5
SHIFT_PER_CRASH = 3  # an eighth as many at once after every crash
LOAD_AGAIN_SECONDS = 10.0
# Failures that say nothing about the request: it runs again.
_NOT_THE_REQUESTS_FAULT = frozenset({"engine_lost", "interrupted", "cancelled", "model_unloaded", "overloaded"})
MODEL_NOT_LOADED = "model_not_loaded"
NOT_RECEIVED = "not_received"


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    owner: str
    models: tuple[str, ...]
    lease_seconds: float
    write_interval_seconds: float
    engine_wait_seconds: float
    max_request_crashes: int


class EngineChunkRunner:
    """The chunk runner of a device's worker; `run` may be called by many threads at once."""

    def __init__(
        self,
        database: Database,
        engine: EngineClient,
        options: RunnerOptions,
        stopping: threading.Event,
        relay: Relay,
    ) -> None:
        self._database = database
        self._engine = engine
        self._options = options
        self._stopping = stopping
        self._relay = relay
        self._asked_at: dict[str, float] = {}

    def close(self) -> None:
        self._engine.close()

    def run(self, service_class: ServiceClass) -> ChunkRun | None:
        hello = self._engine.wait_ready(self._options.engine_wait_seconds)
        models = self._usable_models(hello, service_class)
        if hello is None or not models or self._stopping.is_set():
            logger.warning("no engine is ready: the chunk stays where it is", extra={"event": "engine.away"})
            return None
        with self._database.begin() as session:
            lease = chunks.claim(
                session,
                owner=self._options.owner,
                service_class=service_class.value,
                models=models,
                lease_seconds=self._options.lease_seconds,
            )
        if lease is None:
            return None
        deltas = Deltas(self._relay, lease.job_public_id, lease.attempt)
        execution = _Execution(self._database, self._engine, self._options, self._stopping, lease, deltas)
        return execution.run(hello, service_class)

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


class _Execution:
    """One claimed chunk, from its unfinished requests to its end."""

    def __init__(
        self,
        database: Database,
        engine: EngineClient,
        options: RunnerOptions,
        stopping: threading.Event,
        lease: Lease,
        deltas: Deltas,
    ) -> None:
        self._database = database
        self._engine = engine
        self._options = options
        self._stopping = stopping
        self._lease = lease
        self._deltas = deltas
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._todo: deque[Request] = deque()
        self._in_flight: dict[str, Request] = {}
        self._num_lost = 0
        self._finished: list[Outcome] = []
        self._written_at = time.monotonic()
        self._is_done = False
        self._is_stopping = False
        self._crash: Crash | None = None
        self._width_shift = SHIFT_PER_CRASH * lease.num_crashes
        self._must_hand_back = False
        self._engine_seen_at = time.monotonic()
        self._is_online = False

    def run(self, hello: Hello, service_class: ServiceClass) -> ChunkRun:
        lease = self._lease
        self._is_online = service_class is ServiceClass.ONLINE
        priority = ONLINE_PRIORITY if self._is_online else BULK_PRIORITY
        try:
            self._begin()
            while not self._is_over():
                self._submit(self._window(hello.credits), priority)
                self._collect()
                self._write_if_due()
                self._watch_engine()
            is_closed = self._end()
        except LeaseLost as error:
            logger.warning("%s", error, extra={"event": "chunk.lease_lost", "job": lease.job_public_id})
            is_closed = False
        finally:
            self._engine.cancel(list(self._in_flight))
        return ChunkRun(lease.job_id, lease.job_public_id, self._is_done, is_closed)

    def _begin(self) -> None:
        with self._database.begin() as session:
            self._todo.extend(chunks.unfinished(session, self._lease))
        self._convict()
        if not self._todo:
            self._write()

    def _convict(self) -> None:
        """Fails the request that took the engine down too often; the others, innocent so far, run at full width."""
        guilty = next((request for request in self._todo if request.index == self._lease.suspect_request), None)
        if guilty is not None and self._lease.suspect_crashes >= self._options.max_request_crashes:
            self._todo.remove(guilty)
            self._finished.append(outcome.of_crashes(guilty.index, self._lease.suspect_crashes))
            self._width_shift = 0

    def _window(self, granted: int) -> int:
        """After every crash fewer requests run at once, in the end one, so that the guilty one is found."""
        return max(1, granted >> self._width_shift)

    def _is_over(self) -> bool:
        return self._is_done or self._is_stopping or self._must_hand_back or self._stopping.is_set()

    def _submit(self, window: int, priority: int) -> None:
        """Keeps a little more in flight than the engine grants this client at once."""
        batch: list[Generate] = []
        while self._todo and len(self._in_flight) < window:
            request = self._todo.popleft()
            try:
                parsed = parse_body(self._lease.endpoint, request.body)
            except InvalidRequest as error:
                self._finished.append(outcome.of_invalid(request.index, error))
                continue
            request_id = f"{self._lease.job_public_id}-{request.index}-{self._lease.attempt}-{self._num_lost}"
            self._in_flight[request_id] = request
            is_streamed = self._is_online and parsed.streaming is not None
            generate = parsed.to_generate(
                request_id, priority=priority, stream=is_streamed, prefix_scope=self._lease.tenant
            )
            batch.append(generate)
        if batch:
            self._engine.submit(batch, self._answers.put)

    def _collect(self) -> None:
        """Waits for an answer until the next write is due, then takes all that are there."""
        try:
            if self._in_flight:
                self._take(self._answers.get(timeout=self._options.write_interval_seconds))
            while True:
                self._take(self._answers.get_nowait())
        except Empty:
            return

    def _take(self, answer: Answer) -> None:
        if isinstance(answer, Delta):
            self._deltas.take(self._in_flight[answer.id].index, answer)
            return
        if isinstance(answer, Embedded):
            return
        request = self._in_flight.pop(answer.id)
        index = request.index
        if isinstance(answer, Failed) and answer.code == NOT_RECEIVED:
            self._num_lost += 1  # ids are never used again
            self._todo.appendleft(request)
        elif isinstance(answer, Finished):
            self._finished.append(outcome.of_finished(self._lease, index, answer, int(time.time())))
        elif self._may_run_again(answer):
            self._give_up(index, answer)
        else:
            self._finished.append(outcome.of_failed(index, answer))

    def _may_run_again(self, failure: Failed) -> bool:
        """A person is told at once that the model cannot be loaded; bulk rows wait until it can."""
        waits_for_model = failure.code == MODEL_NOT_LOADED and not self._is_online
        return waits_for_model or failure.code in _NOT_THE_REQUESTS_FAULT

    def _watch_engine(self) -> None:
        """Requests that were never sent hear nothing of an engine that is away: another node may run them."""
        now = time.monotonic()
        if self._engine.hello is not None:
            self._engine_seen_at = now
        elif now - self._engine_seen_at > self._options.engine_wait_seconds:
            self._must_hand_back = True

    def _give_up(self, index: int, failure: Failed) -> None:
        if failure.code == ENGINE_LOST and self._crash is None:
            self._crash = Crash(None if self._in_flight else index)
        self._must_hand_back = True

    def _write_if_due(self) -> None:
        waited = time.monotonic() - self._written_at
        nothing_left = not self._todo and not self._in_flight
        is_due = bool(self._finished) and (nothing_left or waited >= self._options.write_interval_seconds)
        if is_due or waited >= self._options.lease_seconds / RENEWALS_PER_LEASE:
            self._write()

    def _write(self) -> None:
        """Waits for a database that is away: the answers are worth more than the wait. Raises LeaseLost."""
        result = self._patiently(lambda: self._write_once())
        self._finished.clear()
        self._written_at = time.monotonic()
        self._is_done, self._is_stopping = result.is_done, result.is_stopping

    def _write_once(self) -> chunks.WriteResult:
        with self._database.begin() as session:
            return chunks.write(session, self._lease, self._finished)

    def _patiently(self, action: Callable[[], chunks.WriteResult]) -> chunks.WriteResult:
        while True:
            try:
                return action()
            except Unavailable as error:
                logger.warning("chunk %d waits to write: %s", self._lease.chunk_index, error)
                if self._stopping.wait(RETRY_SECONDS):
                    raise

    def _end(self) -> bool:
        """Writes what is finished and hands the rest back. True when nobody has to run the chunk again."""
        if self._finished and not self._is_done:
            self._write()
        if self._is_done:
            return True
        self._deltas.interrupt()
        with self._database.begin() as session:
            chunks.hand_back(session, self._lease, self._crash)
        logger.info(
            "chunk %d of job %s handed back with %d requests unfinished",
            self._lease.chunk_index,
            self._lease.job_public_id,
            len(self._todo) + len(self._in_flight),
            extra={"event": "chunk.handed_back", "job": self._lease.job_public_id},
        )
        return self._is_stopping
