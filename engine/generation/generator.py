"""The runtime of a language model: `step` is the whole of continuous batching.

It takes requests in as sequences, has the scheduler choose, the runner compute, and turns new tokens into deltas and
answers. Where the runner can be ahead, a step is launched before the tokens of the one before are read, and `PENDING`
stands for them meanwhile. An answer that ends by an end token or a stop string is then found out one step late; the
token that was computed for it is dropped, and its K/V lie where nobody reads.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from core.errors import MillraceError, Overloaded
from core.protocol import GENERATOR, Spent
from engine.generation.answers import Answers, ModelFacts
from engine.generation.execution import Sampled, StepRunner
from engine.generation.flights import FailedLate, Flights
from engine.generation.meter import StepMeter
from engine.generation.scheduler import Scheduler, Step
from engine.generation.sequence import Sequence
from engine.kv.pool import KvPool
from engine.runtime import Arrival, Gauges, Key, Reply, failed
from engine.waiting.compiling import Compiling

logger = logging.getLogger(__name__)


class Generator:
    """answers: what the tokens become. clock: seconds, monotonic, the one that arrivals are stamped with."""

    kind: str = GENERATOR

    def __init__(
        self,
        runner: StepRunner,
        answers: Answers,
        facts: ModelFacts,
        scheduler: Scheduler,
        pool: KvPool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._answers = answers
        self._facts = facts
        self._scheduler = scheduler
        self._pool = pool
        self._clock = clock
        self._meter = StepMeter()
        self._flights = Flights(runner)
        self._compiling = Compiling()
        self._num_steps = 0
        self._step_seconds = 0.0
        self._read_seconds = 0.0  # when the last flight had been read

    @property
    def context_tokens(self) -> int:
        return self._facts.context_tokens

    @property
    def weight_bytes(self) -> int:
        return self._facts.weight_bytes

    @property
    def num_slots(self) -> int:
        return self._pool.num_slots

    def submit(self, arrival: Arrival) -> None:
        for sequence in self._answers.open(arrival):
            if not self._compiling.add(sequence):
                self._scheduler.add(sequence)

    def cancel(self, key: Key) -> Spent | None:
        spent = self._answers.spent(key)
        for sequence in self._answers.close(key):
            self._end(sequence)
        return spent

    def hold_bulk(self, is_held: bool) -> None:
        self._scheduler.is_bulk_held = is_held

    def wait_seconds(self) -> float | None:
        if len(self._answers) and (self._scheduler.has_work or len(self._flights)):
            return 0.0
        return self._compiling.wait_seconds()

    def step(self) -> list[Reply]:
        started = self._clock()
        replies = self._take_compiled()
        step, late = self._schedule()
        replies += [*late, *self._launch(step, started)]
        while self._flights.must_read:
            replies += self._read()
        self._flights.expect()
        self._count(started)
        return replies

    def gauges(self) -> Gauges:
        cells = sum(sequence.num_cached_tokens for sequence in self._scheduler.running)
        return Gauges(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + len(self._compiling),
            num_steps_total=self._num_steps,
            prompt_tokens_total=self._answers.num_prompt_tokens_total,
            completion_tokens_total=self._answers.num_completion_tokens_total,
            step_seconds_total=self._step_seconds,
            kv_used_fraction=min(1.0, cells / self._pool.budget_tokens),
            num_preemptions_total=self._scheduler.num_preemptions_total,
            prefix_hit_tokens_total=self._pool.num_prefix_hit_tokens_total,
            prefix_lookup_tokens_total=self._pool.num_prefix_lookup_tokens_total,
            steps=self._meter.totals(),
        )

    def close(self) -> None:
        self._flights.clear()
        self._runner.close()

    def _take_compiled(self) -> list[Reply]:
        """Schedule those whose grammar is there."""
        replies: list[Reply] = []
        while (sequence := self._compiling.next_ready()) is not None:
            try:
                self._compiling.check(sequence)
            except MillraceError as error:
                self.cancel(sequence.key)
                replies.append(failed(sequence.key, error))
            else:
                self._compiling.remove(sequence)
                self._scheduler.add(sequence)
        return replies

    def _schedule(self) -> tuple[Step, list[Reply]]:
        """A sequence that gave way has lost its place, where the device keeps its pending token: read that first."""
        num_preemptions = self._scheduler.num_preemptions_total
        step = self._scheduler.schedule()
        self._answers.prefill_begins(piece.sequence for piece in step.pieces)
        if self._scheduler.num_preemptions_total == num_preemptions:
            return step, []
        replies = self._read_all()
        return replace(step, pieces=[piece for piece in step.pieces if piece.sequence.slot is not None]), replies

    def _launch(self, step: Step, started: float) -> list[Reply]:
        try:
            self._runner.prepare(step)
        except RuntimeError:  # what torch raises when memory is short
            logger.exception("K/V cannot take their new shape; all running requests fail and may come again")
            return [*self._read_all(), *self._fail_running()]
        if not step.pieces:  # all there is to do is to wait for tokens
            return self._read_all()
        self._flights.launch(step, started)
        return []

    def _read_all(self) -> list[Reply]:
        replies: list[Reply] = []
        while len(self._flights):
            replies += self._read()
        return replies

    def _read(self) -> list[Reply]:
        """What came of the oldest step under way."""
        try:
            flight, sampled = self._flights.read()
        except FailedLate:
            self._start_over()
            return []
        _share(flight.step, self._clock() - max(flight.started_seconds, self._read_seconds))
        replies = [reply for one in sampled for reply in self._settle(one)]
        now = self._clock()
        self._observe(flight.step, now - max(flight.started_seconds, self._read_seconds))
        self._read_seconds = now
        return replies

    def _observe(self, step: Step, seconds: float) -> None:
        self._scheduler.observe(step, seconds)
        num_prefill = len(step.pieces) - step.num_decode
        self._meter.observe(step.num_decode, step.num_prefill_tokens, seconds, num_prefill)

    def _settle(self, sampled: Sampled) -> list[Reply]:
        if self._answers.is_finished(sampled.sequence):  # another of its request's sequences has just failed
            return []
        if sampled.failure is not None:
            return self._fail(sampled.sequence, sampled.failure)
        replies = self._answers.take(sampled.sequence, sampled.token_id, sampled.logprobs)
        if self._answers.is_finished(sampled.sequence):
            self._end(sampled.sequence)
        return replies

    def _fail(self, sequence: Sequence, error: MillraceError) -> list[Reply]:
        is_alive, spent = self._runner.is_device_alive(), self._answers.spent(sequence.key)
        for one in self._answers.close(sequence.key):
            one.is_spoiled = True  # another answer to the same prompt may have failed with it
            if one.slot is not None and is_alive:
                self._runner.wipe(one)
            self._end(one)
        return [failed(sequence.key, error, spent)]

    def _fail_running(self) -> list[Reply]:
        keys = list(dict.fromkeys(sequence.key for sequence in self._scheduler.running))
        spent = {key: self.cancel(key) for key in keys}
        self._pool.forget()
        self._runner.drop_kv()
        error = Overloaded("the engine ran out of memory for K/V; try again, with fewer slots or a shorter context")
        return [failed(key, error, spent[key]) for key in keys]

    def _start_over(self) -> None:
        """Nobody knows which K/V are right: prefill all again."""
        for sequence in self._scheduler.running:
            self._scheduler.remove(sequence)
            self._scheduler.add(sequence)
        self._pool.forget()

    def _end(self, sequence: Sequence) -> None:
        if self._compiling.remove(sequence):
            return
        self._scheduler.remove(sequence)
        self._flights.end(sequence)

    def _count(self, started: float) -> None:
        self._num_steps += 1
        self._step_seconds += self._clock() - started


def _share(step: Step, seconds: float) -> None:
    """Charges the sequences of a step with its time, by their tokens in it."""
    num_tokens = sum(piece.num_tokens for piece in step.pieces)
    for piece in step.pieces:
        piece.sequence.device_seconds += seconds * piece.num_tokens / num_tokens
