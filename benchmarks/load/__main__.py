"""`python -m benchmarks.load [--quick] [--json] [--isolation | --guidellm]`: waiting people over HTTP.

Without either an engine that computes nothing answers: what the system adds to the bare engine with one request in
flight, answers per second with 16, and 64 streams at once. With `--isolation` a random model of 115 M parameters
answers people at two requests a second, first alone, then beside a bulk job that keeps the engine full. With
`--guidellm` that tool asks the engine that computes nothing; it is installed at the first time. All with default
settings."""

import argparse
from pathlib import Path
from typing import Protocol

from benchmarks.load.guidellm import measure_guidellm
from benchmarks.load.isolation import measure_isolation
from benchmarks.load.online import measure_online
from benchmarks.report import Options, Report, open_report
from benchmarks.sandbox import temporary_root


class Measure(Protocol):
    def __call__(self, root: Path, report: Report, *, is_quick: bool) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few requests: to see that it works")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--isolation", action="store_true", help="people beside a bulk job, on a model that computes")
    kinds.add_argument("--guidellm", action="store_true", help="guidellm's figures of an engine that computes nothing")
    given = parser.parse_args()
    options = Options(given.quick, given.json)
    title, measure = _chosen(given)
    report = open_report(title, options)
    with temporary_root() as root:
        measure(root, report, is_quick=options.is_quick)


def _chosen(given: argparse.Namespace) -> tuple[str, Measure]:
    if given.isolation:
        return "People beside a bulk job", measure_isolation
    if given.guidellm:
        return "guidellm's figures, on an engine that computes nothing", measure_guidellm
    return "People who wait, on an engine that computes nothing", measure_online


if __name__ == "__main__":
    main()
