"""The runtime of a language model: `step` is the whole of continuous batching.

It takes requests in as sequences, has the scheduler choose, the runner compute, and turns new tokens into deltas and
answers. A request that breaks a step is found by running the step's sequences one by one, and fails alone.
"""

import logging
import time
from collections.abc import Callable

from core.errors import MillraceError, ModelFailure, Overloaded
from engine.generation.answers import Answers, ModelFacts
from engine.generation.runner import Runner, Sampled
from engine.generation.scheduler import Piece, Scheduler, Step
from engine.generation.sequence import Sequence
from engine.kv.slots import SlotPool
from engine.runtime import Arrival, Gauges, Key, Reply, failed

logger = logging.getLogger(__name__)


class DeviceLost(MillraceError):
    """The device answers nothing any more; only a new process helps."""


class Generator:
    """answers: what the tokens become. clock: seconds, monotonic, the one that arrivals are stamped with."""

    def __init__(
        self,
        runner: Runner,
        answers: Answers,
        facts: ModelFacts,
        scheduler: Scheduler,
        pool: SlotPool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._answers = answers
        self._facts = facts
        self._scheduler = scheduler
        self._pool = pool
        self._clock = clock
        self._num_steps = 0
        self._step_seconds = 0.0

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
            self._scheduler.add(sequence)

    def cancel(self, key: Key) -> None:
        for sequence in self._answers.close(key):
            self._scheduler.remove(sequence)

    def wait_seconds(self) -> float | None:
        return 0.0 if len(self._answers) else None

    def step(self) -> list[Reply]:
        started = self._clock()
        step = self._scheduler.schedule()
        self._answers.prefill_begins(piece.sequence for piece in step.pieces)
        replies = self._advance(step, self._execute(step)) if self._prepare(step) else self._fail_running()
        self._num_steps += 1
        self._step_seconds += self._clock() - started
        return replies

    def gauges(self) -> Gauges:
        cells = sum(sequence.num_cached_tokens for sequence in self._scheduler.running)
        return Gauges(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_steps_total=self._num_steps,
            prompt_tokens_total=self._answers.num_prompt_tokens_total,
            completion_tokens_total=self._answers.num_completion_tokens_total,
            step_seconds_total=self._step_seconds,
            kv_used_fraction=cells / self._pool.budget_tokens,
        )

    def close(self) -> None:
        self._runner.close()

    def _prepare(self, step: Step) -> bool:
        try:
            self._runner.prepare(step, self._pool)
        except RuntimeError:  # what torch raises when memory is short
            logger.exception("the KV grid cannot take its new shape; all running requests fail and may come again")
            return False
        return True

    def _fail_running(self) -> list[Reply]:
        self._runner.drop_grid()
        keys = list(dict.fromkeys(sequence.key for sequence in self._scheduler.running))
        for key in keys:
            self.cancel(key)
        error = Overloaded("the engine ran out of memory for K/V; try again, with fewer slots or a shorter context")
        return [failed(key, error) for key in keys]

    def _execute(self, step: Step) -> list[Sampled]:
        try:
            return self._runner.run(step.pieces)
        except Exception as error:  # whatever a model raises must not end the loop for all
            logger.warning("a step failed; its %d sequences run one by one", len(step.pieces), exc_info=error)
            return self._isolate(step.pieces)

    def _isolate(self, pieces: list[Piece]) -> list[Sampled]:
        results = [result for piece in pieces for result in self._run_alone(piece)]
        if all(isinstance(outcome, ModelFailure) for _, outcome in results) and not self._runner.is_device_alive():
            raise DeviceLost(
                f"the device that runs {self._facts.name} answers nothing any more; the engine must restart"
            )
        return results

    def _run_alone(self, piece: Piece) -> list[Sampled]:
        try:
            return self._runner.run([piece])
        except Exception as error:  # noqa: BLE001  # reported to the one client that it concerns
            logger.warning("request %s fails: %r", piece.sequence.key[1], error)
            return [
                (piece.sequence, ModelFailure(f"the model failed on this request: {type(error).__name__}: {error}"))
            ]

    def _advance(self, step: Step, sampled: list[Sampled]) -> list[Reply]:
        for piece in step.pieces:
            piece.sequence.num_cached_tokens += piece.num_tokens
        replies: list[Reply] = []
        for sequence, outcome in sampled:
            if self._answers.is_finished(sequence):  # another of its request's sequences failed in this step
                continue
            replies += (
                self._fail(sequence, outcome) if isinstance(outcome, ModelFailure) else self._take(sequence, outcome)
            )
        return replies

    def _take(self, sequence: Sequence, token_id: int) -> list[Reply]:
        replies = self._answers.take(sequence, token_id)
        if self._answers.is_finished(sequence):
            self._scheduler.remove(sequence)
        return replies

    def _fail(self, sequence: Sequence, error: ModelFailure) -> list[Reply]:
        if sequence.slot is not None and self._runner.is_device_alive():
            self._runner.wipe(sequence.slot)
        self.cancel(sequence.key)
        return [failed(sequence.key, error)]
