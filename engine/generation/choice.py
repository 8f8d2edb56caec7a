"""One answer while it grows: its tokens become text and log-probabilities, and it finds its end. Knows no torch."""

from collections.abc import Iterable

from core.prompts import PromptCodec
from core.protocol import Choice, Delta
from engine.generation.observed import ObservedTokens
from engine.generation.sequence import Sequence
from engine.generation.text import AnswerText
from engine.sampling.logprobs import Logprobs


class AnswerChoice:
    """end_ids: the model's end tokens. tool_format: how calls in the answer are written; empty is no calls."""

    def __init__(
        self,
        sequence: Sequence,
        codec: PromptCodec,
        end_ids: Iterable[int],
        *,
        is_streamed: bool,
        tool_format: str = "",
    ) -> None:
        self.sequence = sequence
        self.finish_reason: str | None = None
        self._tool_format = tool_format
        self._text = AnswerText(codec.stream(keeps_marks=bool(tool_format)), sequence.sampling.stop)
        self._end_ids = frozenset(() if sequence.sampling.ignore_eos else end_ids)
        self._is_streamed = is_streamed
        self._observed = None if sequence.sampling.num_logprobs is None else ObservedTokens(codec)
        # Otherwise the text is made at the end, at once.
        self._reads_every_token = is_streamed or bool(sequence.sampling.stop) or self._observed is not None
        self._num_told_tokens = 0

    @property
    def outcome(self) -> Choice:
        logprobs = None if self._observed is None else self._observed.entries
        return Choice(self._text.text, self.finish_reason or "stop", logprobs)

    def take(self, token_id: int, logprobs: Logprobs | None) -> Delta | None:
        """A new token. `finish_reason` tells whether there may be more."""
        self.sequence.token_ids.append(token_id)
        constraint = None if self.sequence.controls is None else self.sequence.controls.constraint
        if constraint is not None:
            constraint.take(token_id)
        is_end = token_id in self._end_ids or token_id in self.sequence.sampling.stop_token_ids
        num_read = self._text.num_read
        text = self._push([token_id]) if self._reads_every_token and not is_end else ""
        if self._observed is not None and logprobs is not None and not is_end:
            self._observed.add(token_id, logprobs, num_read, self._text.num_read)
        if is_end or self._text.is_stopped or (constraint is not None and constraint.is_complete):
            self.finish_reason = "stop"
        elif self.sequence.num_answer_tokens >= self.sequence.max_answer_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self._finish(is_end=is_end)
        return self._delta(text)

    def _push(self, token_ids: list[int]) -> str:
        return self._text.push(token_ids, can_stop=self._can_stop)

    @property
    def _can_stop(self) -> bool:
        return self.sequence.num_answer_tokens >= self.sequence.sampling.min_tokens

    def _finish(self, *, is_end: bool) -> str:
        if not self._reads_every_token:
            token_ids = self.sequence.answer_ids
            self._push(token_ids[:-1] if is_end else token_ids)
        rest = self._text.finish(can_stop=self._can_stop)
        if self._text.is_stopped:  # its last characters may have completed a stop string
            self.finish_reason = "stop"
            if self._observed is not None:
                self._observed.cut(self._text.num_certain)
        return rest

    def _delta(self, text: str) -> Delta | None:
        is_finished = self.finish_reason is not None
        if not self._is_streamed or not (text or (is_finished and self._observed and self._observed.has_untold)):
            return None
        num_new = self.sequence.num_answer_tokens - self._num_told_tokens
        self._num_told_tokens = self.sequence.num_answer_tokens
        num_certain = None if is_finished else self._text.num_certain
        logprobs = None if self._observed is None else self._observed.tell(num_certain)
        return Delta(
            self.sequence.key[1],
            text,
            num_new,
            self.sequence.index,
            logprobs,
            self.sequence.num_prompt_tokens,
            self._tool_format,
        )
