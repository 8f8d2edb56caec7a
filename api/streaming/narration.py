"""From what is told of a job to what its client gets: a state machine without I/O.

A client that has text of one run must not get the rest from another: what it has seen would not be what the answer
says. Until it has some, runs may come and go unseen.
"""

from typing import Any

import msgspec

from api.streaming.growing import Growing
from core.errors import Interrupted
from core.openai.answer import chat_logprobs, text_logprobs
from core.openai.chunks import (
    ChunkWriter,
    Event,
    Heading,
    Standing,
    partial_usage,
    standings_of,
    total_usage,
)
from core.openai.progress import Progress
from db.tables import OutcomeRow
from tasks.relay import Piece

SUCCESS = 200


class Narrator:
    """num_answers: choices of each request. progress: what the client has already."""

    def __init__(self, heading: Heading, num_requests: int, num_answers: int, progress: Progress) -> None:
        self.progress = progress
        self._heading = heading
        self._num_answers = num_answers
        self._writer = ChunkWriter(heading, progress)
        self._growing = [Growing() for _ in range(num_requests * num_answers)]

    @property
    def has_begun(self) -> bool:
        """Whether the client has anything of the answer."""
        return self.progress.has_begun

    def grow(self, pieces: list[Piece]) -> list[Event]:
        """Raises Interrupted where they are of another run than what the client has."""
        touched: dict[int, Growing] = {}
        for piece in pieces:
            index = piece.request * self._num_answers + piece.choice
            if piece.attempt < self.progress.attempt or index >= len(self._growing):
                continue
            if piece.attempt > self.progress.attempt:
                self._begin_attempt(piece.attempt)
            touched[index] = self._growing[index]
            touched[index].add(piece)
        return [event for index, growing in sorted(touched.items()) for event in self._told(index, growing)]

    def interrupt(self, attempt: int) -> None:
        """Raises Interrupted where the client has text of this run."""
        if self.has_begun and attempt >= self.progress.attempt:
            raise _interrupted()

    def end(self, outcomes: list[OutcomeRow], attempt: int) -> list[Event]:
        """All that is missing; every outcome is a success, of this attempt. Raises Interrupted where they do not
        continue what the client has."""
        bodies: list[dict[str, Any]] = [msgspec.json.decode(outcome.body) for outcome in outcomes]
        standings = standings_of(bodies)
        usage = total_usage(bodies)
        pairs = zip(self._growing, standings, strict=False)
        is_same = all(growing.message.begins(standing.message) for growing, standing in pairs)
        is_known = attempt == self.progress.attempt or any(growing.text for growing in self._growing)
        if self.has_begun and not (is_same and is_known):
            raise _interrupted()
        self.progress.attempt = attempt
        events = [
            event
            for index, standing in enumerate(standings[: len(self._growing)])
            for event in self._writer.advance(index, standing, usage)
        ]
        return [*events, *self._writer.end(usage)]

    def _begin_attempt(self, attempt: int) -> None:
        if self.has_begun:
            raise _interrupted()
        self._growing = [Growing() for _ in self._growing]
        self.progress.attempt = attempt

    def _told(self, index: int, growing: Growing) -> list[Event]:
        standing = Standing(growing.message, self._logprobs(growing))
        return list(self._writer.advance(index, standing, self._usage()))

    def _logprobs(self, growing: Growing) -> dict[str, Any] | None:
        if not growing.logprobs:
            return None
        tail = growing.logprobs[growing.num_written :]
        growing.num_written = len(growing.logprobs)
        more = chat_logprobs(tail) if self._heading.is_chat else text_logprobs(tail, growing.offsets)
        for name, values in more.items():
            if values is None:
                growing.written[name] = None
            else:
                growing.written.setdefault(name, []).extend(values)
        return growing.written

    def _usage(self) -> dict[str, Any] | None:
        if not self._heading.options.continuous_usage_stats:
            return None
        starts = range(0, len(self._growing), self._num_answers)
        requests = [self._growing[start : start + self._num_answers] for start in starts]
        prompt_tokens = sum(max(growing.prompt_tokens for growing in request) for request in requests)
        return partial_usage(prompt_tokens, sum(growing.num_tokens for growing in self._growing))


def first_failure(outcomes: list[OutcomeRow]) -> OutcomeRow | None:
    return next((outcome for outcome in outcomes if outcome.status_code != SUCCESS), None)


def _interrupted() -> Interrupted:
    return Interrupted(
        "the engine stopped in the middle of the answer; what came is not the beginning of another one, so send the "
        "request again",
        code="stream_interrupted",
    )
