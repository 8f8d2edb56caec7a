"""`python -m benchmarks.load [--quick] [--json] [--isolation]`: waiting people over HTTP, with default settings.

Without `--isolation` an engine that computes nothing answers: what the system adds to the bare engine with one request
in flight, answers per second with 16, and 64 streams at once. With it a random model of 115 M parameters answers
people at two requests a second, first alone, then beside a bulk job that keeps the engine full."""

import argparse

from benchmarks.load.isolation import measure_isolation
from benchmarks.load.online import measure_online
from benchmarks.report import Options, open_report
from benchmarks.sandbox import temporary_root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few requests: to see that it works")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--isolation", action="store_true", help="people beside a bulk job, on a model that computes")
    given = parser.parse_args()
    options = Options(given.quick, given.json)
    title = "People beside a bulk job" if given.isolation else "People who wait, on an engine that computes nothing"
    report = open_report(title, options)
    with temporary_root() as root:
        if given.isolation:
            measure_isolation(root, report, is_quick=options.is_quick)
        else:
            measure_online(root, report, is_quick=options.is_quick)


if __name__ == "__main__":
    main()
