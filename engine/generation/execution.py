"""What the generator asks of whoever computes its steps, on rows of a grid or on pages. Knows no torch.

A step is launched, and its tokens are read later. A runner with `num_ahead` 0 has computed by the time `launch`
returns. One with `num_ahead` 1 has only handed the work to its device: the next step is launched before the tokens of
this one are read. A sequence that goes on meanwhile has `PENDING` as its last token, and the runner takes the token
from its own buffer of those it sampled in the launch before. What is launched later is computed later, so pages that
are released while a step still reads them may be given away at once. Only a sequence that has kept its place since is
launched with a pending token.
"""

from dataclasses import dataclass
from typing import Protocol

from core.errors import MillraceError
from engine.generation.scheduler import Piece, Step
from engine.generation.sequence import PENDING, Sequence
from engine.sampling.logprobs import Logprobs


@dataclass(slots=True)
class Sampled:
    """The token that follows from a piece, or why there is none."""

    sequence: Sequence
    token_id: int = PENDING
    failure: MillraceError | None = None
    logprobs: Logprobs | None = None


class Launch(Protocol):
    def result(self) -> list[Sampled]:
        """One for every piece that was its sequence's last when it was launched; waits for them. Asked once at most."""


class StepRunner(Protocol):
    @property
    def num_ahead(self) -> int:
        """Launches whose tokens need not have been read when the next one comes: 0 or 1."""

    def prepare(self, step: Step) -> None:
        """Bring K/V where the step expects them. Once per step, before its launch. Raises RuntimeError where memory is
        short."""

    def launch(self, pieces: list[Piece]) -> Launch:
        """One forward pass over all pieces. May be repeated, with fewer of them, where it or its result raised."""

    def wipe(self, sequence: Sequence) -> None:
        """Its K/V may hold a NaN, which a mask cannot hide from whoever gets its place. Called while it has one."""

    def drop_kv(self) -> None:
        """Forget the K/V of all, after a failed `prepare`."""

    def is_device_alive(self) -> bool:
        """False after an error that poisons the whole device context, from which only a new process recovers."""

    def close(self) -> None:
        """Give the memory back."""
