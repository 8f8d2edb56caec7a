"""Runs every online request of a worker on one thread, however many people wait: what an answer costs is mostly the way
to the database and back, and many go together at the price of one. While it writes or claims, others gather; where
nobody else waits, one is served at once.

Whatever ends a request early writes what is finished and hands the rest back, as with batches.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from core.errors import LeaseLost, MillraceError, Unavailable
from core.protocol import Embed, Generate, Hello
from db import chunks, online
from db.chunks import Lease, Request, WriteResult
from db.connection import Database
from db.online import WholeEnd
from tasks.services import ChunkRun, Close
from workers.chunks.ending import RETRY_SECONDS, Writer, note_lost
from workers.chunks.execution import Execution, RunnerOptions
from workers.chunks.keeper import LeaseKeeper
from workers.engine_client import Answer, EngineClient

logger = logging.getLogger(__name__)

CLAIMS_AT_ONCE = 16
TURN_SECONDS = 0.2  # where nothing happens, leases and the engine are looked at so often
TOUCH_SECONDS = 1.0
DONE = WriteResult(is_done=True, is_stopping=False)


@dataclass(frozen=True, slots=True)
class OnlineTools:
    """begin: an execution of a chunk whose lease is kept from now on. stopping: set when the worker drains. chance:
    [0, 1)."""

    database: Database
    engine: EngineClient
    keeper: LeaseKeeper
    begin: Callable[[Lease], Execution]
    stopping: threading.Event
    chance: Callable[[], float]


class OnlineServer:
    """`ring()` when something may wait, from any thread; `close()` at the end hands back what runs."""

    def __init__(self, tools: OnlineTools, options: RunnerOptions) -> None:
        self._tools = tools
        self._options = options
        self._writer = Writer(tools.database, tools.stopping)
        self._answers: SimpleQueue[Answer | None] = SimpleQueue()  # None: somebody rang
        self._has_rung = threading.Event()
        self._is_closing = threading.Event()
        self._close: Close | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._running: dict[int, Execution] = {}  # by chunk
        self._by_request: dict[str, Execution] = {}
        self._engine_missed_at: float | None = None
        self._given_up: set[int] = set()  # chunks
        self._is_database_away = False  # as one of those that end together has found
        self._touched_at = self._engine_seen_at = time.monotonic()

    def ring(self, close: Close) -> None:
        """close: is told, on the serving thread, how chunks ended."""
        with self._starting:
            self._close = close
            if self._thread is None and not self._is_closing.is_set():
                self._thread = threading.Thread(target=self._run, name="online-server", daemon=True)
                self._thread.start()
        if not self._has_rung.is_set():
            self._has_rung.set()
            self._answers.put(None)

    def close(self) -> None:
        self._is_closing.set()
        self._answers.put(None)
        with self._starting:
            thread = self._thread
        if thread is not None:
            thread.join()

    @property
    def _is_draining(self) -> bool:
        return self._is_closing.is_set() or self._tools.stopping.is_set()

    def _run(self) -> None:
        try:
            while self._running or not self._is_draining:
                self._turn()
            if self._has_rung.is_set():
                self._tell([])  # somebody else is woken for what came too late
        except Exception:
            message = "online requests cannot be run any more; this worker ends and is started again"
            logger.critical(message, exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def _turn(self) -> None:
        if self._has_rung.is_set() and not self._is_draining:
            self._claim()
        self._submit()
        self._collect()
        self._write()
        self._end()
        self._watch()

    def _claim(self) -> None:
        """As long as something waits and there is room for it. What waits behind that is claimed when others end."""
        hello = self._ready_engine()
        while hello is not None and (room := min(CLAIMS_AT_ONCE, hello.credits - len(self._by_request))) > 0:
            self._has_rung.clear()
            claimed = self._ask(room)
            for lease, requests in claimed:
                self._begin(lease, requests)
            if len(claimed) < room:
                return
            self._has_rung.set()
            self._submit()

    def _begin(self, lease: Lease, requests: list[Request]) -> None:
        """A worker that stood still for longer than a lease may be given what it still runs; after a claim that was
        lost with its server it is the same attempt, which goes on."""
        held = self._running.get(lease.chunk_id)
        if held is not None:
            if held.lease.attempt == lease.attempt:
                return
            held.interrupt()
            self._forget(held)
        execution = self._running[lease.chunk_id] = self._tools.begin(lease)
        execution.begin(requests)
        if not execution.num_unfinished:
            self._write_alone(execution)

    def _ready_engine(self) -> Hello | None:
        """Waits for one that is away only where nothing runs; when it is away for too long, what waits is left to the
        dispatcher, which finds another node or comes back."""
        hello = self._tools.engine.wait_ready(0.0 if self._running else TURN_SECONDS)
        if hello is not None:
            self._engine_missed_at = None
            return hello
        now = time.monotonic()
        missed_at = self._engine_missed_at = self._engine_missed_at or now
        if not self._running and now - missed_at >= self._options.engine_wait_seconds:
            self._has_rung.clear()
            self._engine_missed_at = None
            logger.warning("no engine is ready: what people wait for stays where it is", extra={"event": "engine.away"})
        return None

    def _ask(self, limit: int) -> list[tuple[Lease, list[Request]]]:
        options = self._options
        try:
            return chunks.claim_online(
                self._tools.database,
                owner=options.owner,
                models=options.models,
                lease_seconds=options.lease_seconds,
                limit=limit,
                takes_oldest=self._tools.chance() < options.oldest_claim_fraction,
            )
        except Unavailable as error:
            logger.warning("what people wait for stays where it is: %s", error)
            self._has_rung.set()  # it is tried again at the next turn
            return []

    def _submit(self) -> None:
        hello = self._tools.engine.hello
        if hello is None:
            return
        batch: list[Generate | Embed] = []
        for execution in self._running.values():
            for message in self._messages(execution, hello.credits):
                self._by_request[message.id] = execution
                batch.append(message)
        if batch:
            self._tools.engine.submit(batch, self._answers.put)

    def _messages(self, execution: Execution, granted: int) -> list[Generate | Embed]:
        try:
            return execution.messages(granted)
        except Exception as error:  # noqa: BLE001  # is logged
            self._give_up(execution, error)
            return []

    def _collect(self) -> None:
        """Waits until something happens, unless something is to be written already; then takes all that has."""
        try:
            if not any(execution.is_due() for execution in self._running.values()):
                self._take(self._answers.get(timeout=TURN_SECONDS))
            while True:
                self._take(self._answers.get_nowait())
        except Empty:
            return

    def _take(self, answer: Answer | None) -> None:
        execution = None if answer is None else self._by_request.get(answer.id)
        if answer is None or execution is None:  # of one that has ended meanwhile
            return
        try:
            execution.take(answer)
        except Exception as error:  # noqa: BLE001  # is logged
            self._give_up(execution, error)
        if not execution.is_in_flight(answer.id):
            del self._by_request[answer.id]

    def _write(self) -> None:
        due = [execution for execution in self._running.values() if execution.is_due()]
        whole = [execution for execution in due if execution.is_whole]
        others = [execution for execution in due if not execution.is_whole]
        if whole and not self._write_together(whole):
            others += whole
        for execution in others:
            self._write_alone(execution)

    def _write_together(self, executions: Sequence[Execution]) -> bool:
        """False where something is wrong with one of them. Where PostgreSQL is away they stay due."""
        ends = [WholeEnd(execution.lease, tuple(execution.finished)) for execution in executions]
        try:
            written = online.end_whole(self._tools.database, self._options.owner, ends)
        except Unavailable as error:
            logger.warning("%d answers wait to be written: %s", len(ends), error)
            self._tools.stopping.wait(RETRY_SECONDS)
            return True
        except Exception:
            logger.exception("%d answers cannot be written together", len(ends))
            return False
        for execution in executions:
            is_completed = written.get(execution.lease.chunk_id)
            if is_completed is None:
                execution.watch.is_lost = True
            else:
                execution.note_written(DONE, is_completed=is_completed)
        return True

    def _write_alone(self, execution: Execution) -> None:
        try:
            self._writer.write(execution)
        except LeaseLost:
            execution.watch.is_lost = True
        except Exception as error:  # noqa: BLE001  # is logged
            self._give_up(execution, error)

    def _give_up(self, execution: Execution, error: Exception) -> None:
        """One that cannot be seen through takes nobody else along."""
        lease = execution.lease
        message = "chunk %d of job %s was neither written nor given back: %s; it runs again when its lease is over"
        is_surprise = not isinstance(error, MillraceError)
        logger.error(message, lease.chunk_index, lease.job_public_id, error, exc_info=is_surprise)
        self._given_up.add(lease.chunk_id)

    def _end(self) -> None:
        runs: list[ChunkRun] = []
        self._is_database_away = False
        for execution in list(self._running.values()):
            is_closed = self._ending(execution)
            if is_closed is not None:
                self._forget(execution)
                runs.append(execution.report(is_closed=is_closed))
        if runs:
            self._tell(runs)

    def _tell(self, runs: Sequence[ChunkRun]) -> None:
        if self._close is not None:
            try:
                self._close(runs)
            except Exception:
                logger.exception("%d ends are told later", len(runs))

    def _ending(self, execution: Execution) -> bool | None:
        """Whether nobody has to run it again; None while it goes on."""
        if execution.lease.chunk_id in self._given_up:
            return False
        if self._is_draining and self._is_database_away:  # each try takes seconds, and the grace period few
            self._give_up(execution, Unavailable("PostgreSQL is away"))
            return False
        try:
            if not execution.is_over(is_draining=self._is_draining):
                return None
            if ids := execution.withdraw():
                self._tools.engine.withdraw(ids)
            return None if execution.is_withdrawing else self._writer.end(execution)
        except LeaseLost as error:
            note_lost(error, execution)
        except Exception as error:  # noqa: BLE001  # is logged
            self._is_database_away = isinstance(error, Unavailable)
            self._give_up(execution, error)
        return False

    def _forget(self, execution: Execution) -> None:
        ids = execution.ids_in_flight
        self._tools.engine.cancel(ids)
        for request_id in ids:
            self._by_request.pop(request_id, None)
        self._tools.keeper.release(execution.watch)
        self._running.pop(execution.lease.chunk_id)
        self._given_up.discard(execution.lease.chunk_id)

    def _watch(self) -> None:
        """Requests that were never sent hear nothing of an engine that is away: another node may run them."""
        now = time.monotonic()
        if now - self._touched_at < TOUCH_SECONDS:
            return
        self._touched_at = now
        if self._tools.engine.hello is not None:
            self._engine_seen_at = now
        is_away = now - self._engine_seen_at > self._options.engine_wait_seconds
        for execution in self._running.values():
            execution.watch.touch()
            if is_away:
                execution.hand_back()
