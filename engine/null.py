"""A model that computes nothing: for tests and for measuring everything around the engine. No torch.

Its source is `null:` or `null:SECONDS`. Every prompt is answered after that delay with the first 16 hexadecimal digits
of the SHA-256 of its canonical JSON, every text is embedded as eight numbers of the same digest; usage counts words.
An answer that is streamed comes in `NUM_DELTAS` pieces, evenly over the delay.
Two kinds of model have a fault: with `null:SECONDS!WORD` a prompt with this word takes the whole process down when its
turn comes, as a broken kernel would, and with `null:SECONDS~WORD` the step that it is in never ends. With
`null:SECONDS>FILE` the digest of every prompt is appended to the file, a line each, when it arrives: what was run again
stands there twice.
"""

import hashlib
import heapq
import itertools
import math
import os
import struct
import threading
import time
from collections.abc import Callable

import msgspec

from core.errors import ConfigurationError, MillraceError
from core.protocol import ANYTHING, Delta, Embed, Embedded, Finished, Generate, Spent, Timing, Usage
from engine.runtime import Arrival, Gauges, Key, Reply, check_prompt, failed
from engine.sampling.limits import check_sampling

PREFIX = "null:"
POISONED_STATUS = 134  # as after SIGABRT
NUM_DELTAS = 4

_encode = msgspec.json.Encoder(order="deterministic").encode


class NullModel:
    kind: str = ANYTHING

    def __init__(
        self,
        delay_seconds: float,
        num_slots: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        poison: str = "",
        trap: str = "",
        journal: int | None = None,
    ) -> None:
        """poison, trap: words that end the process, and that stop it for ever; empty is none. journal: a descriptor."""
        self.num_slots = num_slots
        self.context_tokens = 0
        self.weight_bytes = 0
        self._delay_seconds = delay_seconds
        self._poison = poison.encode()
        self._trap = trap.encode()
        self._journal = journal
        self._clock = clock
        self._due: list[tuple[float, int, int, Arrival]] = []  # a heap: when, in which order, which piece
        self._order = itertools.count()
        self._waiting: dict[Key, Arrival] = {}
        self._num_steps = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0

    @classmethod
    def from_source(cls, source: str, num_slots: int) -> "NullModel":
        """Raises ConfigurationError."""
        text, _, path = source.removeprefix(PREFIX).partition(">")
        text, _, trap = text.partition("~")
        text, _, poison = text.partition("!")
        try:
            delay = float(text or "0")
        except ValueError:
            delay = -1.0
        if not 0 <= delay < float("inf"):
            raise ConfigurationError(f"a null model's source: expected `null:` or `null:SECONDS`, got {source!r}")
        return cls(delay, num_slots, poison=poison, trap=trap, journal=_open_journal(path) if path else None)

    def submit(self, arrival: Arrival) -> None:
        if isinstance(arrival.request, Generate):
            check_prompt(arrival.request)
            check_sampling(arrival.request.sampling)
            if self._journal is not None:
                os.write(self._journal, f"{answer_text(arrival.request)}\n".encode())
        self._waiting[arrival.key] = arrival
        is_streamed = isinstance(arrival.request, Generate) and arrival.request.stream
        for piece in range(1 if is_streamed else NUM_DELTAS, NUM_DELTAS + 1):
            due = arrival.arrived_seconds + self._delay_seconds * piece / NUM_DELTAS
            heapq.heappush(self._due, (due, next(self._order), piece, arrival))

    def cancel(self, key: Key) -> Spent | None:
        arrival = self._waiting.pop(key, None)
        if arrival is None or not isinstance(arrival.request, Generate):
            return None
        has_spoken = self._clock() >= arrival.arrived_seconds + self._delay_seconds / NUM_DELTAS
        return Spent(_count_words(arrival.request), int(arrival.request.stream and has_spoken))

    def hold_bulk(self, is_held: bool) -> None:
        """Nothing: it warms nobody."""

    def wait_seconds(self) -> float | None:
        return max(0.0, self._due[0][0] - self._clock()) if self._due else None

    def step(self) -> list[Reply]:
        """Answers all that is due, as the one step of a very fast model."""
        now = self._clock()
        replies: list[Reply] = []
        while self._due and self._due[0][0] <= now:
            _, _, piece, arrival = heapq.heappop(self._due)
            if self._waiting.get(arrival.key) is arrival:  # else it was cancelled meanwhile
                replies += self._answer(arrival, now) if piece == NUM_DELTAS else _delta(arrival, piece)
        self._num_steps += 1
        return replies

    def gauges(self) -> Gauges:
        return Gauges(
            num_running=len(self._waiting),
            num_steps_total=self._num_steps,
            prompt_tokens_total=self._prompt_tokens,
            completion_tokens_total=self._completion_tokens,
        )

    def close(self) -> None:
        self._waiting.clear()
        self._due.clear()
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def _answer(self, arrival: Arrival, now: float) -> list[Reply]:
        request, key = arrival.request, arrival.key
        del self._waiting[key]
        waited = now - arrival.arrived_seconds
        if isinstance(request, Embed):
            return [self._embed(key, request, Timing(0.0, waited, waited))]
        prompt = _encode(request.messages or request.text)
        if self._poison and self._poison in prompt:
            os._exit(POISONED_STATUS)
        if self._trap and self._trap in prompt:
            threading.Event().wait()
        try:
            text = answer_text(request)
        except MillraceError as error:
            return [failed(key, error)]
        usage = Usage(_count_words(request), 1)
        self._prompt_tokens += usage.prompt_tokens
        self._completion_tokens += 1
        finished = Reply(key, Finished(request.id, text, "stop", usage, Timing(0.0, waited, waited)))
        return [*_delta(arrival, NUM_DELTAS), finished] if request.stream else [finished]

    def _embed(self, key: Key, request: Embed, timing: Timing) -> Reply:
        inputs: list[str] | list[list[int]] = request.texts or request.token_ids or []
        usage = Usage(sum(len(item.split() if isinstance(item, str) else item) for item in inputs), 0)
        self._prompt_tokens += usage.prompt_tokens
        return Reply(key, Embedded(request.id, [embedding(item) for item in inputs], usage, timing))


def _open_journal(path: str) -> int:
    """Appended to by several engines at once, a line by one write. Raises ConfigurationError."""
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(f"a null model's journal: expected a file, got {path!r}: {error}") from error


def _delta(arrival: Arrival, piece: int) -> list[Reply]:
    """The first of them counts the answer's one token."""
    request = arrival.generation()
    text = answer_text(request)
    length = len(text) // NUM_DELTAS
    part = text[(piece - 1) * length : piece * length]
    delta = Delta(request.id, part, int(piece == 1), prompt_tokens=_count_words(request))
    return [Reply(arrival.key, delta)]


def answer_text(request: Generate) -> str:
    prompt = request.messages or request.text or request.token_ids
    return hashlib.sha256(_encode(prompt)).hexdigest()[:16]


def embedding(item: str | list[int]) -> bytes:
    """Of length 1."""
    numbers = [number - 2.0**31 for number in struct.unpack("<8I", hashlib.sha256(_encode(item)).digest())]
    length = math.hypot(*numbers)
    return struct.pack("<8f", *(number / length for number in numbers))


def _count_words(request: Generate) -> int:
    if request.token_ids is not None:
        return len(request.token_ids)
    if request.text is not None:
        return len(request.text.split())
    return sum(len(str(message.get("content", "")).split()) for message in request.messages or ())
