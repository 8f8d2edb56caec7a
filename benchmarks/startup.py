"""Seconds from `millrace up` to ready, and the memory of each part at that moment.

The first start makes the database and, for the built-in model, trains it; later starts find both. Once with the null
model, which shows what Millrace itself costs, and once with the built-in model.
`python -m benchmarks.startup [--quick] [--json]`; `--quick` takes the null model alone, one start of each kind.
"""

import statistics
import time
from dataclasses import dataclass

from benchmarks.processes import memory_megabytes
from benchmarks.report import Report, open_report, parse_options
from benchmarks.sandbox import gpu_name, settings_in, temporary_root
from cli.local.running import running
from core.settings import BUILTIN_MODEL, Settings

STARTS = 3
NULL = "null"


@dataclass(frozen=True, slots=True)
class Start:
    ready_seconds: float
    stop_seconds: float
    memory_megabytes: dict[str, dict[str, float]]


def start_once(settings: Settings) -> Start:
    """A whole Millrace, up and down again."""
    begun = time.perf_counter()
    with running(settings) as started:
        ready = time.perf_counter()
        memory = memory_megabytes(started.pid)
        stopping = time.perf_counter()
    return Start(ready - begun, time.perf_counter() - stopping, memory)


def measure(name: str, models: str, num_starts: int, report: Report) -> None:
    with temporary_root() as root:
        settings = settings_in(root, models)
        first = start_once(settings)
        later = [start_once(settings) for _ in range(num_starts)]
    report.add(f"startup_first_seconds_{name}", first.ready_seconds, "s")
    report.add(f"startup_seconds_{name}", statistics.median(start.ready_seconds for start in later), "s")
    report.add(f"stop_seconds_{name}", statistics.median(start.stop_seconds for start in later), "s")
    report.table(f"memory_{name}", "MB", later[-1].memory_megabytes)


def main() -> None:
    options = parse_options(__doc__)
    num_starts = options.num_rounds or (1 if options.is_quick else STARTS)
    report = open_report(f"Start of `millrace up`, median of {num_starts}", options, gpu_name())
    measure(NULL, f"{NULL}=null:", num_starts, report)
    if not options.is_quick:
        measure("builtin", BUILTIN_MODEL, num_starts, report)


if __name__ == "__main__":
    main()
