"""What clients get of sequences: tokens become text, deltas and outcomes. Knows no torch and no schedule.

A request is one answer of one or more choices, each of them a sequence of its own; it ends when all of them have.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from core.prompts import PromptCodec
from core.protocol import Choice, Delta, Finished, Generate, Timing, Usage
from engine.generation.sequence import Sequence
from engine.generation.text import AnswerText
from engine.runtime import Arrival, Key, Reply, check_prompt
from engine.sampling.limits import answer_limit, check_sampling, check_token_ids


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What answers depend on of a loaded model."""

    name: str
    context_tokens: int
    vocabulary_size: int
    end_ids: frozenset[int]
    weight_bytes: int


@dataclass(slots=True, eq=False)
class _Choice:
    sequence: Sequence
    text: AnswerText
    num_told_tokens: int = 0
    finish_reason: str | None = None


@dataclass(slots=True, eq=False)
class _Answer:
    """prefill_seconds, first_token_seconds: clock readings, 0 until then."""

    request: Generate
    arrived_seconds: float
    choices: list[_Choice] = field(default_factory=list)
    prefill_seconds: float = 0.0
    first_token_seconds: float = 0.0

    @property
    def is_finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)


class Answers:
    """All requests of a model that have neither finished nor failed."""

    def __init__(self, codec: PromptCodec, facts: ModelFacts, clock: Callable[[], float]) -> None:
        self._codec = codec
        self._facts = facts
        self._clock = clock
        self._open: dict[Key, _Answer] = {}
        self._order = 0
        self.num_prompt_tokens_total = 0
        self.num_completion_tokens_total = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, arrival: Arrival) -> list[Sequence]:
        """The sequences of a new request. Raises a MillraceError where it is refused; nothing is left of it then."""
        request = arrival.request
        check_sampling(request.sampling)
        token_ids = self._encode(request)
        check_token_ids(token_ids, self._facts.vocabulary_size)
        limit = answer_limit(len(token_ids), request.sampling.max_tokens, self._facts.context_tokens)
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        answer = _Answer(request, arrival.arrived_seconds)
        for index in range(request.num_answers):
            self._order += 1
            sequence = Sequence(
                arrival.key,
                list(token_ids),
                request.sampling,
                request.priority,
                self._order,
                seed + index,
                max_answer_tokens=limit,
                index=index,
            )
            answer.choices.append(_Choice(sequence, AnswerText(self._codec.stream(), request.sampling.stop)))
        self._open[arrival.key] = answer
        return [choice.sequence for choice in answer.choices]

    def close(self, key: Key) -> list[Sequence]:
        """Forget a request; its sequences that had not finished."""
        answer = self._open.pop(key, None)
        return [] if answer is None else [c.sequence for c in answer.choices if c.finish_reason is None]

    def prefill_begins(self, sequences: Iterable[Sequence]) -> None:
        now = self._clock()
        for sequence in sequences:
            answer = self._open[sequence.key]
            if answer.prefill_seconds == 0.0:
                answer.prefill_seconds = now
                self.num_prompt_tokens_total += sequence.num_prompt_tokens

    def take(self, sequence: Sequence, token_id: int) -> list[Reply]:
        """A new token. `is_finished` tells whether the sequence goes on."""
        answer = self._open[sequence.key]
        choice = answer.choices[sequence.index]
        sequence.token_ids.append(token_id)
        self.num_completion_tokens_total += 1
        if answer.first_token_seconds == 0.0:
            answer.first_token_seconds = self._clock()
        reads_every_token = answer.request.stream or bool(sequence.sampling.stop)
        delta = choice.text.push([token_id]) if reads_every_token else ""
        choice.finish_reason = self._finish_reason(choice, token_id)
        if choice.finish_reason is None:
            return self._delta(answer, choice, delta)
        if not reads_every_token:
            choice.text.push(sequence.answer_ids)
        delta += choice.text.finish()
        if choice.text.is_stopped:  # its last characters completed a stop string
            choice.finish_reason = "stop"
        replies = self._delta(answer, choice, delta)
        return [*replies, self._finish(answer)] if answer.is_finished else replies

    def is_finished(self, sequence: Sequence) -> bool:
        answer = self._open.get(sequence.key)
        return answer is None or answer.choices[sequence.index].finish_reason is not None

    def _encode(self, request: Generate) -> list[int]:
        check_prompt(request)
        if request.messages is not None:
            return self._codec.encode_chat(request.messages)
        if request.text is not None:
            return self._codec.encode_text(request.text)
        return list(request.token_ids or ())

    def _finish_reason(self, choice: _Choice, token_id: int) -> str | None:
        sequence = choice.sequence
        is_end = token_id in self._facts.end_ids and not sequence.sampling.ignore_eos
        if is_end or choice.text.is_stopped:
            return "stop"
        return "length" if sequence.num_answer_tokens >= sequence.max_answer_tokens else None

    def _delta(self, answer: _Answer, choice: _Choice, text: str) -> list[Reply]:
        if not answer.request.stream or not text:
            return []
        sequence = choice.sequence
        num_new = sequence.num_answer_tokens - choice.num_told_tokens
        choice.num_told_tokens = sequence.num_answer_tokens
        return [Reply(sequence.key, Delta(sequence.key[1], text, num_new, sequence.index))]

    def _finish(self, answer: _Answer) -> Reply:
        key = answer.choices[0].sequence.key
        del self._open[key]
        first, *more = [Choice(choice.text.text, choice.finish_reason or "stop") for choice in answer.choices]
        usage = Usage(
            answer.choices[0].sequence.num_prompt_tokens,
            sum(choice.sequence.num_answer_tokens for choice in answer.choices),
        )
        finished = Finished(key[1], first.text, first.finish_reason, usage, self._timing(answer), first.logprobs, more)
        return Reply(key, finished)

    def _timing(self, answer: _Answer) -> Timing:
        start = answer.arrived_seconds
        return Timing(answer.prefill_seconds - start, answer.first_token_seconds - start, self._clock() - start)
