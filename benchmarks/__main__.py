"""`python -m benchmarks [--quick] [--json]`: all benchmarks, one after the other and never at once, each in a process
of its own. Ends with the status of the first one that fails."""

import subprocess
import sys

from benchmarks.report import parse_options

NAMES = (
    "engine",
    "engine_prefix",
    "engine_latency",
    "embeddings",
    "startup",
    "intake",
    "dispatch",
    "scale",
    "load",
    "system",
)


def main() -> int:
    options = parse_options(__doc__)
    if options.num_requests or options.num_rounds:
        print("--requests and --rounds belong to one benchmark: python -m benchmarks.NAME", file=sys.stderr)
        return 2
    flags = [flag for flag, is_given in (("--quick", options.is_quick), ("--json", options.as_json)) if is_given]
    for name in NAMES:
        status = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *flags], check=False).returncode
        if status != 0:
            print(f"benchmarks.{name} ended with status {status}", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
