"""Tokens on their way from the device: nobody waits for them but who asks. Knows neither model nor K/V."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.errors import ModelFailure
from engine.generation.execution import Sampled
from engine.generation.sequence import Sequence
from engine.paged.sampling import FAILED


class Mark(Protocol):
    """A place behind what a device has been given to do."""

    def synchronize(self) -> None:
        """Wait until the device has come there."""


class AlreadyThere:
    """On a CPU everything is computed when its call returns."""

    def synchronize(self) -> None: ...


SetMark = Callable[[torch.device], Mark]


def set_mark(device: torch.device) -> Mark:
    """Behind all that was launched so far."""
    if device.type != "cuda":
        return AlreadyThere()
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


@dataclass(frozen=True, slots=True)
class TokensHere:
    """A launch whose tokens the host had to know to sample them."""

    sampled: list[Sampled]

    def result(self) -> list[Sampled]:
        return self.sampled


class TokensComing:
    """The copy to pinned memory is ordered when it is made; `result` waits for that copy alone, not for what was
    launched after it. It waits for a launch without tokens too: how long that took decides how much prompts may take,
    and what it failed of is said there."""

    def __init__(self, sequences: list[Sequence], tokens: Tensor, mark: Callable[[], Mark]) -> None:
        """tokens: (sequences,) int64, `FAILED` where there is none. mark: set behind the copy."""
        self._sequences = sequences
        self._tokens = tokens
        if tokens.is_cuda:
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
        self._copied = mark()

    def result(self) -> list[Sampled]:
        self._copied.synchronize()
        return [_sampled(*pair) for pair in zip(self._sequences, self._tokens.tolist(), strict=True)]


def _sampled(sequence: Sequence, token_id: int) -> Sampled:
    if token_id != FAILED:
        return Sampled(sequence, token_id)
    failure = ModelFailure("the model computed NaN or infinity for this request; another precision (dtype) may help")
    return Sampled(sequence, failure=failure)
