"""The steps that are under way: launched, and not all of them read.

Where a step fails, its sequences run one by one, so that only the guilty one fails; a prompt for which memory is short
is tried once more in two halves. Where a step fails after another was launched behind it, both are worth nothing, and
the generator starts over from the tokens it has read. Knows neither texts nor clients.
"""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import OutOfMemoryError

from core.errors import MillraceError, ModelFailure
from engine.generation.execution import Launch, Sampled, StepRunner
from engine.generation.scheduler import Piece, Step
from engine.generation.sequence import PENDING, Sequence

logger = logging.getLogger(__name__)


class DeviceLost(MillraceError):
    """The device answers nothing any more; only a new process helps."""


class FailedLate(MillraceError):
    """A step failed after another had been launched behind it."""


@dataclass(slots=True, eq=False)
class Flight:
    """A step under way. started_seconds: when its scheduling began. ended: its sequences that ended meanwhile.

    is_expected: the tokens it samples stand as `PENDING` in their sequences.
    """

    step: Step
    started_seconds: float
    launch: Launch | Exception
    needs_host_tokens: bool
    ended: set[Sequence] = field(default_factory=set)
    is_expected: bool = False

    @property
    def pieces(self) -> Iterator[Piece]:
        """Of sequences that have not ended."""
        return (piece for piece in self.step.pieces if piece.sequence not in self.ended)

    def result(self) -> list[Sampled]:
        if isinstance(self.launch, Exception):
            raise self.launch
        return self.launch.result()


class Flights:
    """The oldest first."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._flights: deque[Flight] = deque()
        self._suspects: set[Sequence] = set()  # one of them broke a step late

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def must_read(self) -> bool:
        """Whether the oldest must be read before the next step is scheduled."""
        return len(self._flights) > self._num_ahead()

    def launch(self, step: Step, started_seconds: float) -> None:
        """What it raises is met when the flight is read."""
        launch: Launch | Exception
        try:
            launch = self._runner.launch(step.pieces)
        except Exception as error:  # noqa: BLE001  # whatever a model raises must not end the loop for all
            launch = error
        needs_tokens = any(piece.sequence.needs_host_tokens for piece in step.pieces)
        self._flights.append(Flight(step, started_seconds, launch, needs_tokens))

    def expect(self) -> None:
        """Let the tokens that are under way stand as `PENDING`, so that the next step can be scheduled."""
        for flight in self._flights:
            if not flight.is_expected:
                flight.is_expected = True
                for piece in flight.pieces:
                    _expect(piece)

    def read(self) -> tuple[Flight, list[Sampled]]:
        """The oldest, and what came of the sequences in it that have not ended. Raises FailedLate, DeviceLost."""
        flight = self._flights.popleft()
        try:
            sampled = flight.result()
        except Exception as error:
            logger.warning("a step of %d sequences failed; they run again", len(flight.step.pieces), exc_info=error)
            if not flight.is_expected:
                return flight, self._isolate(list(flight.pieces))
            self._start_over(flight)
            raise FailedLate("a step failed that others were launched behind") from error
        return flight, self._arrive(flight, sampled)

    def end(self, sequence: Sequence) -> None:
        """Nothing more is wanted of it."""
        self._suspects.discard(sequence)
        for flight in self._flights:
            flight.ended.add(sequence)

    def clear(self) -> None:
        self._flights.clear()

    def _num_ahead(self) -> int:
        newest = self._flights[-1] if self._flights else None
        if newest is None or newest.needs_host_tokens or isinstance(newest.launch, Exception) or self._suspects:
            return 0
        return self._runner.num_ahead

    def _arrive(self, flight: Flight, sampled: list[Sampled]) -> list[Sampled]:
        wanted = [one for one in sampled if one.sequence not in flight.ended]
        if flight.is_expected:
            for one in wanted:
                one.sequence.token_ids.pop()
        else:
            for piece in flight.pieces:
                piece.sequence.num_cached_tokens += piece.num_tokens
        if self._suspects:
            self._suspects.difference_update(one.sequence for one in wanted)
        return wanted

    def _start_over(self, flight: Flight) -> None:
        """Back to the tokens that were read. Nothing runs ahead until every one of these sequences has had another
        token, so that the guilty one can be told."""
        self._require_device()
        for piece in flight.pieces:
            if piece.sequence.is_pending:
                piece.sequence.token_ids.pop()
            self._suspects.add(piece.sequence)
        self._flights.clear()

    def _isolate(self, pieces: list[Piece]) -> list[Sampled]:
        """Everything before has been read, and nothing has been launched behind."""
        sampled = [one for piece in pieces for one in self._run_alone(piece)]
        if sampled and all(one.failure is not None for one in sampled):
            self._require_device()
        self._suspects.difference_update(one.sequence for one in sampled)
        return sampled

    def _run_alone(self, piece: Piece, *, is_half: bool = False) -> list[Sampled]:
        sequence = piece.sequence
        try:
            sampled = self._runner.launch([piece]).result()
        except Exception as error:  # noqa: BLE001  # reported to the one client that it concerns
            if isinstance(error, OutOfMemoryError) and piece.num_tokens > 1 and not is_half:
                return self._run_halves(piece)
            logger.warning("request %s fails: %r", sequence.key[1], error)
            return [Sampled(sequence, failure=_failure(error))]
        sequence.num_cached_tokens += piece.num_tokens
        return sampled

    def _run_halves(self, piece: Piece) -> list[Sampled]:
        half = piece.num_tokens // 2
        failed = self._run_alone(Piece(piece.sequence, half), is_half=True)
        return failed or self._run_alone(Piece(piece.sequence, piece.num_tokens - half), is_half=True)

    def _require_device(self) -> None:
        if not self._runner.is_device_alive():
            raise DeviceLost("the device answers nothing any more; the engine must restart")


def _expect(piece: Piece) -> None:
    sequence, is_last = piece.sequence, piece.is_last
    sequence.num_cached_tokens += piece.num_tokens
    if is_last:
        sequence.token_ids.append(PENDING)


def _failure(error: Exception) -> MillraceError:
    if isinstance(error, OutOfMemoryError):
        # Not `overloaded`: it ran alone, so that another try would end the same way.
        return ModelFailure("the device ran out of memory on this request, which ran alone; send a shorter one")
    return ModelFailure(f"the model failed on this request: {type(error).__name__}: {error}")
