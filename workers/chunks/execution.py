"""Runs one claimed chunk: streams its unfinished requests to the engine and writes the answers in groups under the
lease. Whatever ends it early writes what is finished and hands the rest back.

What a failure means: the request's own fault is its outcome; one that another try may mend is tried again later, so
often and so late as the options say; one that says nothing about the request gives the chunk back. After a crash of the
engine fewer and fewer requests run at once, in the end one, alone on the whole engine: only then is a crash its own.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from core.errors import InvalidRequest, LeaseLost, Unavailable
from core.job import ServiceClass
from core.openai.request import parse_request, to_message
from core.protocol import (
    BULK_PRIORITY,
    ONLINE_PRIORITY,
    Begun,
    Delta,
    Embed,
    Embedded,
    Failed,
    Finished,
    Generate,
    Hello,
)
from db import chunks, online
from db.access import usage
from db.access.usage import Used
from db.chunks import Crash, Lease, Outcome, Request, Retry
from db.connection import Database
from tasks.relay import End
from tasks.services import ChunkRun
from workers.chunks import outcome, retrying
from workers.chunks.deltas import Deltas
from workers.chunks.keeper import Watch
from workers.engine_client import ENGINE_LOST, Answer, EngineClient

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
WITHDRAWAL_SECONDS = 1.0
SHRINK_PER_CRASH = 8  # as many of the suspects run at once as the crash had in flight, divided by this


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    owner: str
    models: tuple[str, ...]
    lease_seconds: float
    write_interval_seconds: float
    engine_wait_seconds: float
    max_request_crashes: int
    max_request_attempts: int = 3
    retry_seconds: float = 2.0
    oldest_claim_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Tools:
    """What an execution works with.  stopping: set when the worker drains.  chance: [0, 1)."""

    database: Database
    engine: EngineClient
    deltas: Deltas
    stopping: threading.Event
    chance: Callable[[], float]


class Execution:
    """One claimed chunk, from its unfinished requests to its end. `requests`: these, where they are known already.

    An online job ends with its chunk, in the same transaction, as people wait for the worker."""

    def __init__(
        self,
        tools: Tools,
        options: RunnerOptions,
        lease: Lease,
        watch: Watch,
        requests: Sequence[Request] | None = None,
    ) -> None:
        self._database = tools.database
        self._engine = tools.engine
        self._deltas = tools.deltas
        self._stopping = tools.stopping
        self._chance = tools.chance
        self._options = options
        self._lease = lease
        self._watch = watch
        self._is_online = lease.service_class == ServiceClass.ONLINE
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._known = requests
        self._todo: deque[Request] = deque()
        self._in_flight: dict[str, Request] = {}
        self._num_lost = 0
        self._finished: list[Outcome] = []
        self._retries: list[Retry] = []
        self._written_at = time.monotonic()
        self._is_done = False
        self._is_completed = False
        self._written: list[Outcome] = []  # of an online job
        self._is_stopping = False
        self._crash: Crash | None = None
        self._crash_width = lease.crash_width
        self._num_cleared = 0
        self._spent = Used()
        self._begun: set[int] = set()  # of those that run alone
        self._must_hand_back = False
        self._engine_seen_at = time.monotonic()

    def run(self, hello: Hello) -> ChunkRun:
        lease = self._lease
        try:
            self._begin()
            while not self._is_over():
                self._submit(self._window(hello.credits))
                self._collect()
                self._write_if_due()
                self._watch_engine()
            is_closed = self._end()
        except LeaseLost as error:
            logger.warning("%s", error, extra={"event": "chunk.lease_lost", "job": lease.job_public_id})
            is_closed = False
        finally:
            self._engine.cancel(list(self._in_flight))
        lost_model = None if self._crash is None else lease.model
        return ChunkRun(
            lease.job_id,
            lease.job_public_id,
            is_done=self._is_done,
            is_closed=is_closed,
            lost_model=lost_model,
            is_completed=self._is_completed,
            end=self._whole_end(),
        )

    def _whole_end(self) -> End | None:
        if not self._is_completed or len(self._written) != self._lease.num_requests:
            return None
        return End(self._lease.attempt, sorted(self._written, key=lambda outcome: outcome.index))

    def _begin(self) -> None:
        if self._known is None:
            with self._database.begin() as session:
                self._known = chunks.unfinished(session, self._lease)
        self._todo.extend(self._known)
        self._convict()
        if not self._todo:
            self._write()

    def _convict(self) -> None:
        """Fails the request that took the engine down too often; the others, innocent so far, run at full width."""
        guilty = next((request for request in self._todo if request.index == self._lease.suspect_request), None)
        if guilty is not None and self._lease.suspect_crashes >= self._options.max_request_crashes:
            self._todo.remove(guilty)
            self._finished.append(outcome.of_crashes(guilty.index, self._lease.suspect_crashes))
            self._crash_width = None

    def _window(self, granted: int) -> int:
        """After a crash an eighth of those that were in flight run at once, in the end one, alone on its engine: so the
        guilty one is found. When as many as are suspected have run through, the others run at full width."""
        if self._crash_width is not None and self._num_cleared >= self._crash_width:
            self._crash_width = None
        return granted if self._crash_width is None else max(1, self._crash_width // SHRINK_PER_CRASH)

    @property
    def _is_alone(self) -> bool:
        return self._crash_width is not None and self._crash_width < 2 * SHRINK_PER_CRASH

    def _is_over(self) -> bool:
        """Raises LeaseLost when the keeper heard that the chunk is somebody else's."""
        if self._is_done:
            return True
        if self._watch.is_lost:
            raise self._lease.lost()
        self._is_stopping = self._is_stopping or self._watch.is_stopping
        if self._is_stopping or self._must_hand_back or self._stopping.is_set():
            return True
        return not self._in_flight and (self._watch.is_paused or not (self._todo or self._unwritten()))

    def _unwritten(self) -> bool:
        return bool(self._finished or self._retries)

    def _submit(self, window: int) -> None:
        """Keeps a little more in flight than the engine grants this client at once."""
        batch: list[Generate | Embed] = []
        while self._todo and len(self._in_flight) < window and not self._watch.is_paused:
            request = self._todo.popleft()
            try:
                message = self._message(request)
            except InvalidRequest as error:
                self._finished.append(outcome.of_invalid(request.index, error))
                continue
            self._in_flight[message.id] = request
            batch.append(message)
        if batch:
            self._engine.submit(batch, self._answers.put)

    def _message(self, request: Request) -> Generate | Embed:
        lease = self._lease
        parsed = parse_request(lease.endpoint, request.body)
        return to_message(
            parsed,
            f"{lease.job_public_id}-{request.index}-{lease.attempt}-{self._num_lost}",
            priority=ONLINE_PRIORITY if self._is_online else BULK_PRIORITY,
            stream=self._is_online and parsed.streaming is not None,
            prefix_scope=lease.tenant,
            is_alone=self._is_alone,
        )

    def _collect(self) -> None:
        """Waits for an answer until the next write is due, then takes all that are there."""
        self._watch.touch()
        try:
            if self._in_flight:
                self._take(self._answers.get(timeout=self._options.write_interval_seconds))
            while True:
                self._take(self._answers.get_nowait())
        except Empty:
            return

    def _take(self, answer: Answer) -> None:
        if isinstance(answer, Begun):
            self._begun.add(self._in_flight[answer.id].index)
            return
        if isinstance(answer, Delta):
            self._deltas.take(self._in_flight[answer.id].index, answer)
            return
        request = self._in_flight.pop(answer.id)
        self._num_cleared += retrying.has_run(answer)
        if isinstance(answer, Finished):
            self._finished.append(outcome.of_finished(self._lease, request.index, answer, int(time.time())))
        elif isinstance(answer, Embedded):
            self._finished.append(outcome.of_embedded(self._lease, request, answer))
        else:
            self._take_failure(request, answer)

    def _take_failure(self, request: Request, failure: Failed) -> None:
        match retrying.verdict(failure, request, self._options.max_request_attempts, is_online=self._is_online):
            case retrying.Verdict.SEND_AGAIN:
                self._num_lost += 1  # ids are never used again
                self._todo.appendleft(request)
            case retrying.Verdict.GIVE_BACK:
                self._give_back(request.index, failure)
            case retrying.Verdict.TRY_LATER:
                retry = retrying.retry(failure, request, self._options.retry_seconds, self._chance())
                self._retries.append(retry)
            case retrying.Verdict.FAIL:
                self._finished.append(outcome.of_failed(request.index, failure))

    def _give_back(self, index: int, failure: Failed) -> None:
        """One that was to run alone and had not begun has nothing to do with the crash."""
        self._must_hand_back = True
        if failure.code == retrying.OVERLOADED and self._crash_width is None:
            self._crash_width = len(self._in_flight) + 1  # what did not fit together is tried in smaller groups
        if failure.code != ENGINE_LOST or self._crash is not None:
            return
        if not self._is_alone:
            self._crash = Crash(None, width=len(self._in_flight) + 1)
        elif index in self._begun:
            self._crash = Crash(index, width=1)

    def _watch_engine(self) -> None:
        """Requests that were never sent hear nothing of an engine that is away: another node may run them."""
        now = time.monotonic()
        if self._engine.hello is not None:
            self._engine_seen_at = now
        elif now - self._engine_seen_at > self._options.engine_wait_seconds:
            self._must_hand_back = True

    def _write_if_due(self) -> None:
        waited = time.monotonic() - self._written_at
        nothing_left = not self._todo and not self._in_flight
        if self._unwritten() and (nothing_left or waited >= self._options.write_interval_seconds):
            self._write()

    def _write(self) -> None:
        """Waits for a database that is away: the answers are worth more than the wait. Raises LeaseLost."""
        result = self._patiently(lambda: self._write_once())
        if self._is_online:
            self._written += self._finished
        self._finished.clear()
        self._retries.clear()
        self._written_at = time.monotonic()
        self._is_done, self._is_stopping = result.is_done, result.is_stopping

    def _write_once(self) -> chunks.WriteResult:
        with self._database.begin() as session:
            result = chunks.write(session, self._lease, self._finished, self._retries)
            is_completed = self._is_online and result.is_done and online.complete(session, self._lease.job_id)
        self._is_completed = is_completed
        return result

    def _patiently(self, action: Callable[[], chunks.WriteResult]) -> chunks.WriteResult:
        while True:
            try:
                return action()
            except Unavailable as error:
                logger.warning("chunk %d waits to write: %s", self._lease.chunk_index, error)
                self._watch.touch()
                if self._stopping.wait(RETRY_SECONDS):
                    raise

    def _end(self) -> bool:
        """Writes what is finished and gives the rest back. True when nobody has to run the chunk again."""
        if self._is_stopping and not self._is_done:
            self._withdraw()
        if self._unwritten() and not self._is_done:
            self._write()
        if self._is_done:
            return True
        self._deltas.interrupt()
        num_unfinished = len(self._todo) + len(self._in_flight) + self._spent.num_requests
        waits_for_retries = not num_unfinished and not self._must_hand_back and not self._is_stopping
        with self._database.begin() as session:
            if waits_for_retries:
                chunks.delay(session, self._lease)
            else:
                chunks.hand_back(session, self._lease, self._crash, crash_width=self._crash_width)
                usage.note(session, self._lease.job_id, self._spent)
        logger.info(
            "chunk %d of job %s %s with %d requests unfinished",
            self._lease.chunk_index,
            self._lease.job_public_id,
            "waits for its next tries" if waits_for_retries else "handed back",
            num_unfinished,
            extra={"event": "chunk.handed_back", "job": self._lease.job_public_id},
        )
        return self._is_stopping

    def _withdraw(self) -> None:
        """What nobody wants any more has used the device all the same, and the engine says how much. One that is slow
        to say so is not waited for."""
        self._engine.withdraw(list(self._in_flight))
        ends_at = time.monotonic() + WITHDRAWAL_SECONDS
        while self._in_flight and (left := ends_at - time.monotonic()) > 0:
            try:
                answer = self._answers.get(timeout=left)
            except Empty:
                return
            if isinstance(answer, Failed):
                del self._in_flight[answer.id]
                self._spent.add_request(answer.spent)
            else:
                self._take(answer)
