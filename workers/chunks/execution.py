"""What becomes of one claimed chunk: which of its requests to send next, what their answers mean, what is to be
written, and when it is over. Waits for nothing, knows neither the database nor the engine's socket.

What a failure means: the request's own fault is its outcome; one that another try may mend is tried again later, so
often and so late as the options say; one that says nothing about the request gives the chunk back. After a crash of the
engine fewer and fewer requests run at once, in the end one, alone on the whole engine: only then is a crash its own.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.errors import InvalidRequest
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
)
from db.access.usage import Used
from db.chunks import Crash, Lease, Outcome, Request, Retry, WriteResult
from tasks.relay import End
from tasks.services import ChunkRun
from workers.chunks import outcome, retrying
from workers.chunks.deltas import Deltas
from workers.chunks.keeper import Watch
from workers.engine_client import ENGINE_LOST, Answer

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


class Execution:
    """chance: [0, 1)."""

    def __init__(
        self,
        lease: Lease,
        watch: Watch,
        options: RunnerOptions,
        deltas: Deltas,
        chance: Callable[[], float],
    ) -> None:
        self.lease = lease
        self.watch = watch
        self.finished: list[Outcome] = []  # to be written
        self.retries: list[Retry] = []  # to be written
        self.crash: Crash | None = None
        self.crash_width = lease.crash_width
        self.is_done = False
        self.is_stopping = False
        self.is_completed = False
        self._deltas = deltas
        self._chance = chance
        self._options = options
        self._is_online = lease.service_class == ServiceClass.ONLINE
        self._todo: deque[Request] = deque()
        self._in_flight: dict[str, Request] = {}
        self._num_lost = 0
        self._written_at = time.monotonic()
        self._written: list[Outcome] = []  # of an online job
        self._num_cleared = 0
        self.spent = Used()  # by requests that were withdrawn
        self._withdrawn_at: float | None = None
        self._begun: set[int] = set()  # of those that run alone
        self._must_hand_back = False
        self.was_refused = False  # by an engine that is full
        self._nonce = secrets.token_hex(3)  # a claim that was lost with its server may be made again
        self._is_streamed = False

    def begin(self, requests: Sequence[Request]) -> None:
        """requests: those without an outcome."""
        self._todo.extend(requests)
        self._convict()

    def _convict(self) -> None:
        """Fails the request that took the engine down too often; the others, innocent so far, run at full width."""
        guilty = next((request for request in self._todo if request.index == self.lease.suspect_request), None)
        if guilty is not None and self.lease.suspect_crashes >= self._options.max_request_crashes:
            self._todo.remove(guilty)
            self.finished.append(outcome.of_crashes(guilty.index, self.lease.suspect_crashes))
            self.crash_width = None

    @property
    def has_in_flight(self) -> bool:
        return bool(self._in_flight)

    def is_in_flight(self, request_id: str) -> bool:
        return request_id in self._in_flight

    @property
    def ids_in_flight(self) -> list[str]:
        return list(self._in_flight)

    @property
    def num_unfinished(self) -> int:
        return len(self._todo) + len(self._in_flight) + self.spent.num_requests

    @property
    def has_unwritten(self) -> bool:
        return bool(self.finished or self.retries)

    @property
    def is_whole(self) -> bool:
        """What is to be written is the outcome of every request, and no earlier attempt can have written any."""
        return self.lease.attempt == 1 and not self.retries and len(self.finished) == self.lease.num_requests

    @property
    def waits_for_retries(self) -> bool:
        """Nothing is left to do now."""
        return not self.num_unfinished and not self._must_hand_back and not self.is_stopping

    def is_over(self, *, is_draining: bool) -> bool:
        """Raises LeaseLost when the keeper heard that the chunk is somebody else's."""
        if self.is_done:
            return True
        if self.watch.is_lost:
            raise self.lease.lost()
        self.is_stopping = self.is_stopping or self.watch.is_stopping
        if self.is_stopping or self._must_hand_back or is_draining:
            return True
        return not self._in_flight and (self.watch.is_paused or not (self._todo or self.has_unwritten))

    def hand_back(self) -> None:
        """Another node may run what is left."""
        self._must_hand_back = True

    def withdraw(self) -> list[str]:
        """What nobody wants any more has used the device all the same, and the engine says how much when it is asked:
        of these requests, once."""
        if not self.is_stopping or self.is_done or self._withdrawn_at is not None:
            return []
        self._withdrawn_at = time.monotonic()
        return self.ids_in_flight

    @property
    def is_withdrawing(self) -> bool:
        """An engine that is slow to say what was used is not waited for."""
        waited = 0.0 if self._withdrawn_at is None else time.monotonic() - self._withdrawn_at
        return self._withdrawn_at is not None and bool(self._in_flight) and waited < WITHDRAWAL_SECONDS

    def messages(self, granted: int) -> list[Generate | Embed]:
        """To be sent now. Keeps a little more in flight than the engine can hold: `granted` is what it grants."""
        batch: list[Generate | Embed] = []
        window = 0 if self.is_stopping or self._must_hand_back else self._window(granted)
        while self._todo and len(self._in_flight) < window and not self.watch.is_paused:
            request = self._todo.popleft()
            try:
                message = self._message(request)
            except InvalidRequest as error:
                self.finished.append(outcome.of_invalid(request.index, error))
                continue
            self._in_flight[message.id] = request
            batch.append(message)
        return batch

    def _window(self, granted: int) -> int:
        """After a crash an eighth of those that were in flight run at once, in the end one, alone on its engine: so the
        guilty one is found. When as many as are suspected have run through, the others run at full width."""
        if self.crash_width is not None and self._num_cleared >= self.crash_width:
            self.crash_width = None
        return granted if self.crash_width is None else max(1, self.crash_width // SHRINK_PER_CRASH)

    @property
    def _is_alone(self) -> bool:
        return self.crash_width is not None and self.crash_width < 2 * SHRINK_PER_CRASH

    def _message(self, request: Request) -> Generate | Embed:
        lease = self.lease
        parsed = parse_request(lease.endpoint, request.body)
        is_streamed = self._is_online and parsed.streaming is not None
        self._is_streamed = self._is_streamed or is_streamed
        return to_message(
            parsed,
            f"{lease.job_public_id}-{request.index}-{lease.attempt}-{self._num_lost}-{self._nonce}",
            priority=ONLINE_PRIORITY if self._is_online else BULK_PRIORITY,
            stream=is_streamed,
            prefix_scope=lease.tenant,
            is_alone=self._is_alone,
        )

    def take(self, answer: Answer) -> None:
        if isinstance(answer, Begun):
            self._begun.add(self._in_flight[answer.id].index)
            return
        if isinstance(answer, Delta):
            self._deltas.take(self._in_flight[answer.id].index, answer)
            return
        request = self._in_flight.pop(answer.id)
        if self._withdrawn_at is not None and isinstance(answer, Failed):
            self.spent.add_request(answer.spent)
            return
        self._num_cleared += retrying.has_run(answer)
        if isinstance(answer, Finished):
            self.finished.append(outcome.of_finished(self.lease, request.index, answer, int(time.time())))
        elif isinstance(answer, Embedded):
            self.finished.append(outcome.of_embedded(self.lease, request, answer))
        else:
            self._take_failure(request, answer)

    def _take_failure(self, request: Request, failure: Failed) -> None:
        match retrying.verdict(failure, request, self._options.max_request_attempts, is_online=self._is_online):
            case retrying.Verdict.SEND_AGAIN:
                self._num_lost += 1  # ids are never used again
                self._todo.appendleft(request)
            case retrying.Verdict.GIVE_BACK:
                self._todo.appendleft(request)
                self._give_back(request.index, failure)
            case retrying.Verdict.TRY_LATER:
                retry = retrying.retry(failure, request, self._options.retry_seconds, self._chance())
                self.retries.append(retry)
            case retrying.Verdict.FAIL:
                self.finished.append(outcome.of_failed(request.index, failure))

    def _give_back(self, index: int, failure: Failed) -> None:
        """One that was to run alone and had not begun has nothing to do with the crash."""
        self._must_hand_back = True
        self.was_refused = self.was_refused or failure.code == retrying.OVERLOADED
        if failure.code == retrying.OVERLOADED and self.crash_width is None:
            self.crash_width = len(self._in_flight) + 1  # what did not fit together is tried in smaller groups
        if failure.code != ENGINE_LOST or self.crash is not None:
            return
        if not self._is_alone:
            self.crash = Crash(None, width=len(self._in_flight) + 1)
        elif index in self._begun:
            self.crash = Crash(index, width=1)

    def is_due(self) -> bool:
        """Whether it is time to write."""
        waited = time.monotonic() - self._written_at
        return self.has_unwritten and (not self.num_unfinished or waited >= self._options.write_interval_seconds)

    def note_written(self, result: WriteResult, *, is_completed: bool = False) -> None:
        """What was to be written is. is_completed: and its job, an online one, has ended with it."""
        if self._is_online:
            self._written += self.finished
        self.finished.clear()
        self.retries.clear()
        self._written_at = time.monotonic()
        self.is_done, self.is_stopping = result.is_done, result.is_stopping
        self.is_completed = is_completed

    def interrupt(self) -> None:
        """Whoever reads along hears that nothing more comes of this attempt."""
        self._deltas.interrupt()

    def report(self, *, is_closed: bool) -> ChunkRun:
        return ChunkRun(
            self.lease.job_id,
            self.lease.job_public_id,
            is_done=self.is_done,
            is_closed=is_closed,
            lost_model=None if self.crash is None else self.lease.model,
            is_completed=self.is_completed,
            end=self._whole_end(),
            is_streamed=self._is_streamed,
        )

    def _whole_end(self) -> End | None:
        if not self.is_completed or len(self._written) != self.lease.num_requests:
            return None
        return End(self.lease.attempt, sorted(self._written, key=lambda outcome: outcome.index))
