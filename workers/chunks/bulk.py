"""Runs one claimed chunk of a batch: streams its unfinished requests to the engine and writes the answers in groups
under the lease. Whatever ends it early writes what is finished and hands the rest back.
"""

import threading
import time
from queue import Empty, SimpleQueue

from core.errors import LeaseLost
from core.protocol import Hello
from db import chunks
from db.connection import Database
from tasks.services import ChunkRun
from workers.chunks.ending import Writer, note_lost
from workers.chunks.execution import Execution, RunnerOptions
from workers.engine_client import Answer, EngineClient


class BulkRun:
    """stopping: set when the worker drains."""

    def __init__(
        self,
        database: Database,
        engine: EngineClient,
        options: RunnerOptions,
        stopping: threading.Event,
        execution: Execution,
    ) -> None:
        self._database = database
        self._engine = engine
        self._options = options
        self._stopping = stopping
        self._execution = execution
        self._writer = Writer(database, stopping)
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._engine_seen_at = time.monotonic()

    def run(self, hello: Hello) -> ChunkRun:
        execution = self._execution
        try:
            self._begin()
            while not execution.is_over(is_draining=self._stopping.is_set()):
                if messages := execution.messages(hello.credits):
                    self._engine.submit(messages, self._answers.put)
                self._collect()
                if execution.is_due():
                    self._writer.write(execution)
                self._watch_engine()
            if ids := execution.withdraw():
                self._engine.withdraw(ids)
            while execution.is_withdrawing:
                self._collect()
            is_closed = self._writer.end(execution)
        except LeaseLost as error:
            note_lost(error, execution)
            is_closed = False
        finally:
            self._engine.cancel(execution.ids_in_flight)
        return execution.report(is_closed=is_closed)

    def _begin(self) -> None:
        with self._database.begin() as session:
            requests = chunks.unfinished(session, self._execution.lease)
        self._execution.begin(requests)
        if not self._execution.num_unfinished:
            self._writer.write(self._execution)

    def _collect(self) -> None:
        """Waits for an answer until the next write is due, then takes all that are there."""
        self._execution.watch.touch()
        try:
            if self._execution.has_in_flight:
                self._execution.take(self._answers.get(timeout=self._options.write_interval_seconds))
            while True:
                self._execution.take(self._answers.get_nowait())
        except Empty:
            return

    def _watch_engine(self) -> None:
        """Requests that were never sent hear nothing of an engine that is away: another node may run them."""
        now = time.monotonic()
        if self._engine.hello is not None:
            self._engine_seen_at = now
        elif now - self._engine_seen_at > self._options.engine_wait_seconds:
            self._execution.hand_back()
