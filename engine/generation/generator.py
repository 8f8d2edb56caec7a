"""The runtime of a language model: `step` is the whole of continuous batching.

It takes requests in as sequences, has the scheduler choose, the runner compute, and turns new tokens into deltas and
answers. A request that breaks a step is found by running the step's sequences one by one, and fails alone.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from core.errors import MillraceError, ModelFailure, Overloaded
from core.prompts import PromptCodec
from core.protocol import Delta, Finished, Generate, Timing, Usage
from engine.generation.limits import answer_limit, check_sampling, check_token_ids
from engine.generation.runner import Runner, Sampled
from engine.generation.scheduler import Piece, Scheduler, Step
from engine.generation.sequence import Sequence
from engine.generation.slots import SlotPool
from engine.generation.text import AnswerText
from engine.runtime import Arrival, Gauges, Key, Reply, check_prompt, failed

logger = logging.getLogger(__name__)


class DeviceLost(MillraceError):
    """The device answers nothing any more; only a new process helps."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the generator has to know of a loaded model."""

    name: str
    context_tokens: int
    vocabulary_size: int
    end_ids: frozenset[int]
    weight_bytes: int


@dataclass(slots=True, eq=False)
class _Answer:
    """A sequence and what its client gets of it. first_token_seconds, prefill_seconds: clock readings, 0 until then."""

    sequence: Sequence
    text: AnswerText
    is_stream: bool
    arrived_seconds: float
    prefill_seconds: float = 0.0
    first_token_seconds: float = 0.0
    num_told_tokens: int = 0

    @property
    def reads_every_token(self) -> bool:
        return self.is_stream or bool(self.sequence.sampling.stop)


class Generator:
    def __init__(
        self,
        runner: Runner,
        codec: PromptCodec,
        facts: ModelFacts,
        scheduler: Scheduler,
        pool: SlotPool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._codec = codec
        self._facts = facts
        self._scheduler = scheduler
        self._pool = pool
        self._clock = clock
        self._answers: dict[Key, _Answer] = {}
        self._order = 0
        self._num_steps = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0
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
        request = arrival.request
        check_sampling(request.sampling)
        token_ids = self._encode(request)
        check_token_ids(token_ids, self._facts.vocabulary_size)
        limit = answer_limit(len(token_ids), request.sampling.max_tokens, self._facts.context_tokens)
        seed = secrets.randbits(64) if request.sampling.seed is None else request.sampling.seed
        self._order += 1
        sequence = Sequence(
            arrival.key, token_ids, request.sampling, request.priority, self._order, seed, max_answer_tokens=limit
        )
        text = AnswerText(self._codec.stream(), request.sampling.stop)
        self._answers[arrival.key] = _Answer(sequence, text, request.stream, arrival.arrived_seconds)
        self._scheduler.add(sequence)

    def cancel(self, key: Key) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._scheduler.remove(answer.sequence)

    def wait_seconds(self) -> float | None:
        return 0.0 if self._answers else None

    def step(self) -> list[Reply]:
        started = self._clock()
        step = self._scheduler.schedule()
        self._stamp_prefills(step, started)
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
            prompt_tokens_total=self._prompt_tokens,
            completion_tokens_total=self._completion_tokens,
            step_seconds_total=self._step_seconds,
            kv_used_fraction=cells / self._pool.budget_tokens,
        )

    def close(self) -> None:
        self._runner.close()

    def _encode(self, request: Generate) -> list[int]:
        check_prompt(request)
        if request.messages is not None:
            return self._codec.encode_chat(request.messages)
        if request.text is not None:
            return self._codec.encode_text(request.text)
        return list(request.token_ids or ())

    def _stamp_prefills(self, step: Step, now: float) -> None:
        for piece in step.pieces:
            answer = self._answers[piece.sequence.key]
            if answer.prefill_seconds == 0.0:
                answer.prefill_seconds = now
                self._prompt_tokens += piece.sequence.num_prompt_tokens

    def _prepare(self, step: Step) -> bool:
        try:
            self._runner.prepare(step, self._pool)
        except RuntimeError:  # what torch raises when memory is short
            logger.exception("the KV grid cannot take its new shape; all running requests fail and may come again")
            return False
        return True

    def _fail_running(self) -> list[Reply]:
        self._runner.drop_grid()
        keys = [sequence.key for sequence in self._scheduler.running]
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
        now = self._clock()
        replies: list[Reply] = []
        for sequence, outcome in sampled:
            answer = self._answers[sequence.key]
            if isinstance(outcome, ModelFailure):
                replies.append(self._fail(answer, outcome))
            else:
                replies += self._append(answer, outcome, now)
        return replies

    def _append(self, answer: _Answer, token_id: int, now: float) -> list[Reply]:
        sequence = answer.sequence
        sequence.token_ids.append(token_id)
        self._completion_tokens += 1
        if sequence.num_answer_tokens == 1:
            answer.first_token_seconds = now
        delta = answer.text.push([token_id]) if answer.reads_every_token else ""
        reason = self._finish_reason(answer, token_id)
        if reason is None:
            return self._delta(answer, delta)
        return self._finish(answer, delta, reason, now)

    def _finish_reason(self, answer: _Answer, token_id: int) -> str | None:
        is_end = token_id in self._facts.end_ids and not answer.sequence.sampling.ignore_eos
        if is_end or answer.text.is_stopped:
            return "stop"
        return "length" if answer.sequence.num_answer_tokens >= answer.sequence.max_answer_tokens else None

    def _delta(self, answer: _Answer, text: str) -> list[Reply]:
        if not answer.is_stream or not text:
            return []
        key, num_tokens = answer.sequence.key, answer.sequence.num_answer_tokens
        delta = Delta(key[1], text, num_tokens - answer.num_told_tokens)
        answer.num_told_tokens = num_tokens
        return [Reply(key, delta)]

    def _finish(self, answer: _Answer, delta: str, reason: str, now: float) -> list[Reply]:
        sequence = answer.sequence
        if not answer.reads_every_token:
            answer.text.push(sequence.answer_ids)
        delta += answer.text.finish()
        if answer.text.is_stopped:  # its last characters completed a stop string
            reason = "stop"
        finished = Finished(
            sequence.key[1],
            answer.text.text,
            reason,
            Usage(sequence.num_prompt_tokens, sequence.num_answer_tokens),
            self._timing(answer, now),
        )
        replies = [*self._delta(answer, delta), Reply(sequence.key, finished)]
        self.cancel(sequence.key)
        return replies

    def _fail(self, answer: _Answer, error: ModelFailure) -> Reply:
        sequence = answer.sequence
        if sequence.slot is not None and self._runner.is_device_alive():
            self._runner.wipe(sequence.slot)
        self.cancel(sequence.key)
        return failed(sequence.key, error)

    def _timing(self, answer: _Answer, now: float) -> Timing:
        start = answer.arrived_seconds
        return Timing(answer.prefill_seconds - start, answer.first_token_seconds - start, now - start)
