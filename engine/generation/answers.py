"""What clients get of sequences: tokens become text, deltas and outcomes. Knows no torch and no schedule.

A request is one answer of one or more choices, each of them a sequence of its own; it ends when all of them have.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from core.prompts import PromptCodec
from core.protocol import Finished, Generate, Sampling, Spent, Timing, Usage
from engine.generation.choice import AnswerChoice
from engine.generation.sequence import Sequence
from engine.runtime import Arrival, Key, Reply, check_prompt
from engine.sampling.controls import Controls, make_controls
from engine.sampling.grammar import Grammars, Vocabulary
from engine.sampling.limits import (
    answer_limit,
    check_named_tokens,
    check_num_answers,
    check_sampling,
    check_token_ids,
)
from engine.sampling.logprobs import Logprobs


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What answers depend on of a loaded model."""

    name: str
    context_tokens: int
    vocabulary_size: int
    end_ids: frozenset[int]
    weight_bytes: int


@dataclass(slots=True, eq=False)
class _Answer:
    """prefill_seconds, first_token_seconds: clock readings, 0 until then."""

    request: Generate
    arrived_seconds: float
    choices: list[AnswerChoice] = field(default_factory=list)
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
        self._end_ids = frozenset(token_id for token_id in facts.end_ids if 0 <= token_id < facts.vocabulary_size)
        self._grammars = Grammars(
            Vocabulary(
                facts.vocabulary_size, codec.token_bytes, codec.encode_fragment, codec.special_ids, self._end_ids
            )
        )
        self._open: dict[Key, _Answer] = {}
        self._order = 0
        self.num_prompt_tokens_total = 0
        self.num_completion_tokens_total = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, arrival: Arrival) -> list[Sequence]:
        """The sequences of a new request. Raises a MillraceError where it is refused; nothing is left of it then."""
        request = arrival.generation()
        check_sampling(request.sampling)
        check_named_tokens(request.sampling, self._facts.vocabulary_size)
        check_num_answers(request.num_answers)
        token_ids = self._encode(request)
        check_token_ids(token_ids, self._facts.vocabulary_size)
        limit = answer_limit(len(token_ids), request.sampling.max_tokens, self._facts.context_tokens)
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        sequences = [
            Sequence(
                arrival.key,
                list(token_ids),
                request.sampling,
                request.priority,
                self._order + index,
                seed + index,
                max_answer_tokens=limit,
                index=index,
                scope=request.prefix_scope,
                controls=self._controls(request.sampling, len(token_ids)),
            )
            for index in range(request.num_answers)
        ]
        self._order += len(sequences)
        choices = [self._choice(sequence, request) for sequence in sequences]
        self._open[arrival.key] = _Answer(request, arrival.arrived_seconds, choices)
        return sequences

    def close(self, key: Key) -> list[Sequence]:
        """Forget a request; its sequences that had not finished."""
        answer = self._open.pop(key, None)
        return [] if answer is None else [c.sequence for c in answer.choices if c.finish_reason is None]

    def spent(self, key: Key) -> Spent | None:
        """What an open request has used so far; None where it has not begun."""
        answer = self._open.get(key)
        if answer is None or answer.prefill_seconds == 0.0:
            return None
        sequences = [choice.sequence for choice in answer.choices]
        prompt_tokens = max(map(_num_prefilled, sequences))
        return Spent(
            prompt_tokens=prompt_tokens,
            completion_tokens=sum(sequence.num_answer_tokens for sequence in sequences),
            cached_tokens=min(prompt_tokens, sequences[0].num_reused_tokens),
            device_seconds=sum(sequence.device_seconds for sequence in sequences),
        )

    def prefill_begins(self, sequences: Iterable[Sequence]) -> None:
        now = self._clock()
        for sequence in sequences:
            answer = self._open[sequence.key]
            if answer.prefill_seconds == 0.0:
                answer.prefill_seconds = now
                self.num_prompt_tokens_total += sequence.num_prompt_tokens

    def take(self, sequence: Sequence, token_id: int, logprobs: Logprobs | None = None) -> list[Reply]:
        """A new token. `is_finished` tells whether the sequence goes on."""
        answer = self._open[sequence.key]
        self.num_completion_tokens_total += 1
        if answer.first_token_seconds == 0.0:
            answer.first_token_seconds = self._clock()
        delta = answer.choices[sequence.index].take(token_id, logprobs)
        replies = [] if delta is None else [Reply(sequence.key, delta)]
        return [*replies, self._finish(answer)] if answer.is_finished else replies

    def is_finished(self, sequence: Sequence) -> bool:
        answer = self._open.get(sequence.key)
        return answer is None or answer.choices[sequence.index].finish_reason is not None

    def _encode(self, request: Generate) -> list[int]:
        check_prompt(request)
        if request.messages is not None:
            return self._codec.encode_chat(request.messages, self._facts.context_tokens, request.tools)
        if request.text is not None:
            return self._codec.encode_text(request.text, self._facts.context_tokens)
        return list(request.token_ids or ())

    def _controls(self, sampling: Sampling, num_prompt_tokens: int) -> Controls | None:
        constraint = None if sampling.json_schema is None else self._grammars.constraint(sampling.json_schema)
        return make_controls(sampling, self._end_ids, num_prompt_tokens, constraint)

    def _choice(self, sequence: Sequence, request: Generate) -> AnswerChoice:
        tool_format = self._tool_format(request)
        return AnswerChoice(
            sequence, self._codec, self._facts.end_ids, is_streamed=request.stream, tool_format=tool_format
        )

    def _tool_format(self, request: Generate) -> str:
        """Of the answer's calls; empty where it can have none, or nobody knows."""
        return request.tool_format or (str(self._codec.tool_format) if request.tools else "")

    def _finish(self, answer: _Answer) -> Reply:
        key = answer.choices[0].sequence.key
        del self._open[key]
        first, *more = [choice.outcome for choice in answer.choices]
        prompt = answer.choices[0].sequence
        usage = Usage(
            prompt.num_prompt_tokens,
            sum(choice.sequence.num_answer_tokens for choice in answer.choices),
            prompt.num_reused_tokens,
        )
        finished = Finished(
            key[1],
            first.text,
            first.finish_reason,
            usage,
            self._timing(answer),
            first.logprobs,
            more,
            self._tool_format(answer.request),
        )
        return Reply(key, finished)

    def _timing(self, answer: _Answer) -> Timing:
        start = answer.arrived_seconds
        return Timing(
            queue_seconds=answer.prefill_seconds - start,
            first_token_seconds=answer.first_token_seconds - start,
            total_seconds=self._clock() - start,
            device_seconds=sum(choice.sequence.device_seconds for choice in answer.choices),
        )


def _num_prefilled(sequence: Sequence) -> int:
    """Prompt tokens that were computed or known; one that gave its place away had more than it has."""
    most = sequence.num_prompt_tokens
    return most if sequence.num_answer_tokens else min(most, sequence.num_cached_tokens)
