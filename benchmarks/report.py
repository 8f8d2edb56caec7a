"""What every benchmark shares: its command line, the name of the machine, and how figures are printed.

For people a line or a table per figure, with `--json` one object per line: name, value, unit, machine. The standard
output holds figures alone; what started processes say goes to the standard error. Needs nothing but Python, as bare
machines with a GPU run benchmarks too.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

DIGITS = 4
CHART_COLUMNS = 80
_BARS = "▁▂▃▄▅▆▇█"
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Options:
    """num_requests, num_rounds: 0 leaves it to the benchmark."""

    is_quick: bool
    as_json: bool
    num_requests: int = 0
    num_rounds: int = 0


def parse_options(description: str | None, arguments: Sequence[str] | None = None) -> Options:
    """Ends the process with status 2 and a sentence where the arguments are wrong."""
    return options_of(options_parser(description).parse_args(arguments))


def options_parser(description: str | None) -> argparse.ArgumentParser:
    """For a benchmark with options of its own, too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: to see that it works")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--requests", type=_count, default=0, metavar="N", help="or rows, where there is a choice")
    parser.add_argument("--rounds", type=_count, default=0, metavar="N", help="of which the median is taken")
    return parser


def options_of(given: argparse.Namespace) -> Options:
    return Options(given.quick, given.json, given.requests, given.rounds)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


class Report:
    """Prints figures as they come."""

    def __init__(self, stream: TextIO, machine: str, *, as_json: bool) -> None:
        self._stream = stream
        self._machine = machine
        self._as_json = as_json

    def title(self, text: str) -> None:
        if not self._as_json:
            self._print(f"\n{text}\n  on {self._machine}")

    def add(self, name: str, value: float, unit: str) -> None:
        if self._as_json:
            self._print_object(name, value, unit)
        else:
            self._print(f"  {name:<44}{_text(value):>12} {unit}")

    def table(self, name: str, unit: str, rows: Mapping[str, Mapping[str, float]]) -> None:
        """rows: row -> column -> value, the same columns in each. In JSON every cell is `name.row.column`."""
        if self._as_json:
            for row, cells in rows.items():
                for column, value in cells.items():
                    self._print_object(f"{name}.{row}.{column}", value, unit)
            return
        columns = list(next(iter(rows.values()), {}))
        self._print(f"  {f'{name} ({unit})':<44}" + "".join(f"{column:>12}" for column in columns))
        for row, cells in rows.items():
            self._print(f"    {row:<42}" + "".join(f"{_text(cells[column]):>12}" for column in columns))

    def chart(self, name: str, values: Sequence[float]) -> None:
        """values: [0, 1], as one line of bars, for people alone. Where there are too many, the one furthest from the
        middle stands for its neighbours."""
        if self._as_json or not values:
            return
        size = max(1, -(-len(values) // CHART_COLUMNS))
        groups = [values[first : first + size] for first in range(0, len(values), size)]
        seen = [max(group, key=lambda value: abs(value - 0.5)) for group in groups]
        self._print(f"  {name}\n    0 |{''.join(_BARS[min(7, int(8 * value))] for value in seen)}| 1")

    def _print_object(self, name: str, value: float, unit: str) -> None:
        rounded = float(f"{value:.{DIGITS}g}") if abs(value) < 10**DIGITS else round(value)
        self._print(json.dumps({"name": name, "value": rounded, "unit": unit, "machine": self._machine}))

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 ** (DIGITS - 1) else f"{value:.{DIGITS - 1}g}"


def open_report(title: str, options: Options, gpu: str | None = None) -> Report:
    """The report takes the standard output for itself; from here on everybody else's goes to the standard error."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    report = Report(stream, gpu or machine_name(), as_json=options.as_json)
    report.title(title)
    return report


def machine_name() -> str:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{_cpu_model()}, {os.cpu_count()} cores, {memory_bytes / 2**30:.0f} GB"


def _cpu_model() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def percentile(values: Sequence[float], fraction: float) -> float:
    """Between the two nearest values, as PostgreSQL's `percentile_cont`. Raises ValueError where there is no value."""
    if not values:
        raise ValueError("percentile: expected at least one value")
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    lower = int(position)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (position - lower)
