"""Sequences whose grammar is being compiled: they are not scheduled before, so that no step waits for a compiler.

Knows no grammar: what a sequence is constrained by says whether it is ready.
"""

from engine.generation.sequence import Sequence
from engine.sampling.controls import Constraint

LOOK_SECONDS = 0.005  # nobody is told when a compiler is done, so the loop looks


class Compiling:
    """In the order of their arrival."""

    def __init__(self) -> None:
        self._sequences: dict[Sequence, Constraint] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, sequence: Sequence) -> bool:
        """False where there is nothing to wait for."""
        constraint = None if sequence.controls is None else sequence.controls.constraint
        if constraint is None or constraint.is_ready:
            return False
        self._sequences[sequence] = constraint
        return True

    def remove(self, sequence: Sequence) -> bool:
        """Whether it was here."""
        return self._sequences.pop(sequence, None) is not None

    def wait_seconds(self) -> float | None:
        """Until somebody should look; None where nothing is compiled."""
        if not self._sequences:
            return None
        return LOOK_SECONDS if self.next_ready() is None else 0.0

    def next_ready(self) -> Sequence | None:
        return next((sequence for sequence, constraint in self._sequences.items() if constraint.is_ready), None)

    def check(self, sequence: Sequence) -> None:
        """Of one that is ready. Raises a MillraceError where its grammar could not be understood."""
        self._sequences[sequence].check()
