"""What comes out of the rounds of one shape, and the one table of all shapes."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.peers.catalogue import OURS, PEERS
from benchmarks.peers.process import Measured
from benchmarks.report import Report

Figures = dict[str, tuple[float, str]]  # name -> value and unit


@dataclass(slots=True)
class ShapeResult:
    """By peer. ready_seconds: of our own engine process, all starts; of the others, the one start of their process."""

    shape: str
    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    ready_seconds: dict[str, list[float]] = field(default_factory=dict)

    def forget(self, peer: str) -> None:
        """One that failed: half of its rounds would be no median."""
        self.rounds.pop(peer, None)

    def figures(self) -> Figures:
        found: Figures = {}
        rates = {peer: _median_rate(measured) for peer, measured in self.rounds.items() if measured}
        for peer, rate in rates.items():
            found[f"{PEERS[peer].figure}_tokens_per_second"] = (rate, "tokens/s")
        for peer, rate in rates.items():
            if peer != OURS and OURS in rates:
                found[f"ratio_to_{PEERS[peer].figure}"] = (rates[OURS] / rate, "ours/theirs")
        for peer, seconds in self.ready_seconds.items():
            name = "ready_seconds" if peer == OURS else f"{PEERS[peer].figure}_ready_seconds"
            found[name] = (statistics.median(seconds), "s")
        others = [done.other_cores for measured in self.rounds.values() for done in measured]
        if others:
            found["others_cpu_max"] = (max(others), "cores")
        return found


def _median_rate(rounds: Sequence[Measured]) -> float:
    return statistics.median(done.tokens_per_second for done in rounds)


def add_rounds(report: Report, result: ShapeResult) -> None:
    rows = {
        peer: {f"round_{number}": done.tokens_per_second for number, done in enumerate(measured, 1)}
        for peer, measured in result.rounds.items()
    }
    report.table(f"rounds_{result.shape}", "tokens/s", rows)


def add_figures(report: Report, results: Sequence[ShapeResult], *, as_json: bool) -> None:
    """In JSON `name.shape`; for people one row a figure, by unit, and one column a shape, nan where there is none."""
    by_shape = {result.shape: result.figures() for result in results}
    if as_json:
        for shape, figures in by_shape.items():
            for name, (value, unit) in figures.items():
                report.add(f"{name}.{shape}", value, unit)
        return
    units = {name: unit for figures in by_shape.values() for name, (_, unit) in figures.items()}
    for unit in dict.fromkeys(units.values()):
        rows = {
            name: {shape: figures.get(name, (math.nan, unit))[0] for shape, figures in by_shape.items()}
            for name in units
            if units[name] == unit
        }
        report.table("median", unit, rows)
