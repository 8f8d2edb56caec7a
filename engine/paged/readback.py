"""Tokens on their way from the device: nobody waits for them but who asks. Knows neither model nor K/V."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import ModelFailure
from engine.generation.execution import Sampled
from engine.generation.sequence import Sequence
from engine.paged.sampling import FAILED


@dataclass(frozen=True, slots=True)
class TokensHere:
    """A launch whose tokens the host had to know to sample them."""

    sampled: list[Sampled]

    def result(self) -> list[Sampled]:
        return self.sampled


class TokensComing:
    """The copy to pinned memory is ordered when it is made; `result` waits for that copy alone, not for what was
    launched after it."""

    def __init__(self, sequences: list[Sequence], tokens: Tensor) -> None:
        """tokens: (sequences,) int64, `FAILED` where there is none."""
        self._sequences = sequences
        self._tokens = tokens
        self._copied: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def result(self) -> list[Sampled]:
        if self._copied is not None:
            self._copied.synchronize()
        return [_sampled(*pair) for pair in zip(self._sequences, self._tokens.tolist(), strict=True)]


def _sampled(sequence: Sequence, token_id: int) -> Sampled:
    if token_id != FAILED:
        return Sampled(sequence, token_id)
    failure = ModelFailure("the model computed NaN or infinity for this request; another precision (dtype) may help")
    return Sampled(sequence, failure=failure)
