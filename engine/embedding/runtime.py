"""The runtime of an embedding model: one micro-batch per step, over the inputs of all requests. Imports no torch.

A request ends when all its inputs are computed. An input that breaks the model fails the requests that hold it; the
others go on.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from core.errors import ContextLengthExceeded, InvalidRequest, MillraceError, ModelFailure
from core.protocol import EMBEDDER, ONLINE_PRIORITY, Embed, Embedded, Spent, Timing, Usage
from engine.embedding.pile import Input, Pile
from engine.generation.flights import DeviceLost
from engine.generation.meter import StepMeter
from engine.runtime import Arrival, Gauges, Key, Reply, failed

logger = logging.getLogger(__name__)

MAX_INPUTS = 2048  # of one request, as OpenAI has it
STEPS_UNTIL_RETRY = 256  # after memory ran out, until batches may be larger again

TokenIds = tuple[int, ...]


class Encoding(Protocol):
    """What the runtime needs of an encoder."""

    max_tokens: int
    dimensions: int
    vocabulary_size: int

    @property
    def weight_bytes(self) -> int: ...

    def tokenize(self, text: str) -> list[int]: ...

    def embed(self, inputs: Sequence[TokenIds]) -> npt.NDArray[np.float32]: ...

    def is_device_alive(self) -> bool: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """max_tokens: padded tokens of a micro-batch, unless one input alone has more."""

    max_tokens: int
    max_inputs: int


@dataclass(slots=True, eq=False)
class _Request:
    arrival: Arrival
    inputs: list[TokenIds]
    dimensions: int
    embeddings: list[bytes | None]
    num_missing: int
    started_seconds: float = 0.0
    device_seconds: float = 0.0


class EmbeddingRuntime:
    kind: str = EMBEDDER

    def __init__(
        self, name: str, encoder: Encoding, limits: BatchLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._encoder = encoder
        self._limits = limits
        self._clock = clock
        self._pile = Pile()
        self._requests: dict[Key, _Request] = {}
        self._max_tokens = limits.max_tokens
        self._num_good_steps = 0  # since memory ran out
        self._is_bulk_held = False
        self._num_steps = 0
        self._prompt_tokens = 0
        self._step_seconds = 0.0
        self._meter = StepMeter()

    @property
    def context_tokens(self) -> int:
        return self._encoder.max_tokens

    @property
    def weight_bytes(self) -> int:
        return self._encoder.weight_bytes

    @property
    def num_slots(self) -> int:
        return self._limits.max_inputs

    def submit(self, arrival: Arrival) -> None:
        request = arrival.request
        if not isinstance(request, Embed):
            raise InvalidRequest(f"{self._name} is an embedding model: it embeds texts, it does not answer prompts")
        inputs = self._inputs(request)
        dimensions = self._dimensions(request)
        self._requests[arrival.key] = _Request(arrival, inputs, dimensions, [None] * len(inputs), len(inputs))
        for place, token_ids in enumerate(inputs):
            self._pile.add((arrival.key, place), token_ids, request.priority)

    def cancel(self, key: Key) -> Spent | None:
        request = self._requests.pop(key, None)
        if request is None:
            return None
        for place, token_ids in enumerate(request.inputs):
            self._pile.remove((key, place), token_ids)
        pairs = zip(request.inputs, request.embeddings, strict=True)
        num_tokens = sum(len(token_ids) for token_ids, embedding in pairs if embedding is not None)
        is_begun = request.started_seconds > 0.0
        return Spent(prompt_tokens=num_tokens, device_seconds=request.device_seconds) if is_begun else None

    def hold_bulk(self, is_held: bool) -> None:
        """Requests whose inputs are not all computed pause as well."""
        self._is_bulk_held = is_held

    def wait_seconds(self) -> float | None:
        priority = self._pile.best_priority
        if priority is None or (self._is_bulk_held and priority < ONLINE_PRIORITY):
            return None
        return 0.0

    def step(self) -> list[Reply]:
        started = self._clock()
        batch = self._pile.take(self._max_tokens, self._limits.max_inputs)
        self._stamp(batch, started)
        computed = self._compute(batch)
        self._charge(batch, self._clock() - started)
        replies = [reply for waiting, outcome in computed for reply in self._settle(waiting, outcome)]
        self._num_good_steps += 1
        if self._num_good_steps % STEPS_UNTIL_RETRY == 0:
            self._max_tokens = min(self._limits.max_tokens, 2 * self._max_tokens)
        seconds = self._clock() - started
        self._num_steps += 1
        self._step_seconds += seconds
        self._meter.observe(0, sum(waiting.num_tokens for waiting in batch), seconds, num_prefill=len(batch))
        return replies

    def gauges(self) -> Gauges:
        num_started = sum(request.started_seconds > 0 for request in self._requests.values())
        return Gauges(
            num_running=num_started,
            num_waiting=len(self._requests) - num_started,
            num_steps_total=self._num_steps,
            prompt_tokens_total=self._prompt_tokens,
            step_seconds_total=self._step_seconds,
            steps=self._meter.totals(),
        )

    def close(self) -> None:
        self._requests.clear()
        self._pile = Pile()
        self._encoder.close()

    def _inputs(self, request: Embed) -> list[TokenIds]:
        if (request.texts is None) == (request.token_ids is None):
            raise InvalidRequest("input: expected either texts or token ids", param="input")
        texts, given = request.texts or [], request.token_ids or []
        count = len(texts) + len(given)
        if not 1 <= count <= MAX_INPUTS:
            raise InvalidRequest(f"input: expected 1 to {MAX_INPUTS} inputs, got {count}", param="input")
        if empty := [place for place, value in enumerate(texts or given) if not value]:
            raise InvalidRequest(f"input[{empty[0]}]: expected something to embed, got nothing", param="input")
        inputs = [tuple(self._encoder.tokenize(text)) for text in texts] or [tuple(ids) for ids in given]
        for place, token_ids in enumerate(inputs):
            self._check_input(place, token_ids)
        return inputs

    def _check_input(self, place: int, token_ids: TokenIds) -> None:
        if len(token_ids) > self._encoder.max_tokens:
            raise ContextLengthExceeded(
                f"input[{place}] has {len(token_ids)} tokens, but {self._name} takes {self._encoder.max_tokens} at "
                "most; shorten it or split it",
                param="input",
            )
        if not 0 <= min(token_ids) <= max(token_ids) < self._encoder.vocabulary_size:
            raise InvalidRequest(
                f"input[{place}]: expected token ids of 0 to {self._encoder.vocabulary_size - 1}, got "
                f"{min(token_ids)} to {max(token_ids)}",
                param="input",
            )

    def _dimensions(self, request: Embed) -> int:
        most = self._encoder.dimensions
        wanted = most if request.dimensions is None else request.dimensions
        if not 1 <= wanted <= most:
            raise InvalidRequest(f"dimensions: expected 1 to {most}, got {wanted}", param="dimensions")
        return wanted

    def _stamp(self, batch: list[Input], now: float) -> None:
        for waiting in batch:
            for key, _ in waiting.waiters:
                if (request := self._requests[key]).started_seconds == 0.0:
                    request.started_seconds = now

    def _charge(self, batch: list[Input], seconds: float) -> None:
        """Shares the time of a step by tokens, and that of an input between those who wait for it."""
        num_tokens = sum(waiting.num_tokens for waiting in batch)
        for waiting in batch:
            share = seconds * waiting.num_tokens / num_tokens / len(waiting.waiters)
            for key, _ in waiting.waiters:
                self._requests[key].device_seconds += share

    def _compute(self, batch: list[Input]) -> list[tuple[Input, npt.NDArray[np.float32] | ModelFailure]]:
        try:
            rows = self._encoder.embed([waiting.token_ids for waiting in batch])
        except Exception as error:  # whatever a model raises must not end the loop for all
            if not self._encoder.is_device_alive():
                raise DeviceLost("the device answers nothing any more; the engine must restart") from error
            if len(batch) == 1:
                logger.warning("%s fails on an input of %d tokens: %r", self._name, batch[0].num_tokens, error)
                return [(batch[0], ModelFailure(f"the model failed on this input: {type(error).__name__}: {error}"))]
            logger.warning("a batch of %d inputs failed; it runs in halves", len(batch), exc_info=error)
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                self._max_tokens = max(1, max(waiting.num_tokens for waiting in batch) * len(batch) // 2)
                self._num_good_steps = 0
            middle = len(batch) // 2
            return self._compute(batch[:middle]) + self._compute(batch[middle:])
        return [(waiting, _checked(row)) for waiting, row in zip(batch, rows, strict=True)]

    def _settle(self, waiting: Input, outcome: npt.NDArray[np.float32] | ModelFailure) -> list[Reply]:
        if isinstance(outcome, ModelFailure):
            return [self._fail(key, outcome) for key in {key for key, _ in waiting.waiters} if key in self._requests]
        self._prompt_tokens += waiting.num_tokens
        replies = []
        for key, place in waiting.waiters:
            request = self._requests.get(key)
            if request is None:  # another input of it failed in this step
                continue
            request.embeddings[place] = _shortened(outcome, request.dimensions).tobytes()
            request.num_missing -= 1
            if request.num_missing == 0:
                replies.append(self._finish(key, request))
        return replies

    def _finish(self, key: Key, request: _Request) -> Reply:
        del self._requests[key]
        arrived, now = request.arrival.arrived_seconds, self._clock()
        embeddings = [embedding for embedding in request.embeddings if embedding is not None]
        usage = Usage(sum(map(len, request.inputs)), 0)
        timing = Timing(request.started_seconds - arrived, now - arrived, now - arrived, request.device_seconds)
        return Reply(key, Embedded(key[1], embeddings, usage, timing))

    def _fail(self, key: Key, error: MillraceError) -> Reply:
        return failed(key, error, self.cancel(key))


def _checked(row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | ModelFailure:
    if np.isfinite(row).all():
        return row
    return ModelFailure("the model computed NaN or infinity for this input; another precision (dtype) may help")


def _shortened(row: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """The leading dimensions with length 1 (Matryoshka embeddings, arXiv:2205.13147); all of them as they are."""
    if dimensions == row.shape[0]:
        return np.ascontiguousarray(row, dtype="<f4")
    head = row[:dimensions].astype(np.float64)
    length = float(np.linalg.norm(head))
    return (head / length if length else head).astype("<f4")
