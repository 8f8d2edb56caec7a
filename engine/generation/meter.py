"""Counts the steps of a model by kind and by size. Knows no torch and no clock: it is told what a step took."""

from dataclasses import dataclass, field

from core.protocol import Phase


@dataclass(frozen=True, slots=True)
class StepTotals:
    """prefill, decode, mixed, rows_histogram: as in `EngineStats`."""

    prefill: Phase = field(default_factory=Phase)
    decode: Phase = field(default_factory=Phase)
    mixed: Phase = field(default_factory=Phase)
    rows_histogram: list[int] = field(default_factory=list)

    def __add__(self, other: "StepTotals") -> "StepTotals":
        return StepTotals(
            _sum(self.prefill, other.prefill),
            _sum(self.decode, other.decode),
            _sum(self.mixed, other.mixed),
            add_histograms(self.rows_histogram, other.rows_histogram),
        )


@dataclass(slots=True)
class _Counter:
    num_steps: int = 0
    seconds: float = 0.0

    def phase(self) -> Phase:
        return Phase(self.num_steps, self.seconds)


class StepMeter:
    def __init__(self) -> None:
        self._prefill, self._decode, self._mixed = _Counter(), _Counter(), _Counter()
        self._rows_histogram: list[int] = []

    def observe(self, num_decode: int, num_prefill_tokens: int, seconds: float, num_prefill: int = 0) -> None:
        """num_decode, num_prefill: sequences of the step that decode, and that have a piece of their prompt in it."""
        if num_decode == 0 and num_prefill_tokens == 0:
            return
        mixed_or_decode = self._mixed if num_prefill_tokens else self._decode
        counter = mixed_or_decode if num_decode else self._prefill
        counter.num_steps += 1
        counter.seconds += seconds
        num_rows = num_decode + (num_prefill or min(num_prefill_tokens, 1))
        self._count_rows((num_rows - 1).bit_length())

    def totals(self) -> StepTotals:
        return StepTotals(self._prefill.phase(), self._decode.phase(), self._mixed.phase(), list(self._rows_histogram))

    def _count_rows(self, bucket: int) -> None:
        while len(self._rows_histogram) <= bucket:
            self._rows_histogram.append(0)
        self._rows_histogram[bucket] += 1


def add_histograms(one: list[int], other: list[int]) -> list[int]:
    short, long = sorted((one, other), key=len)
    return [*(a + b for a, b in zip(short, long, strict=False)), *long[len(short) :]]


def _sum(one: Phase, other: Phase) -> Phase:
    return Phase(one.num_steps + other.num_steps, one.seconds + other.seconds)
