"""`python -m benchmarks.scale [--rows 1000000] [--json] [--plans]`: how long the statements that everything waits for
take in a database with so many request rows. Each must stay below 5 ms; ends with status 1 where one does not.

The embedded PostgreSQL with its defaults, filled in one go, then vacuumed and analysed. `--plans` prints what
PostgreSQL does (EXPLAIN ANALYZE, BUFFERS) to the standard error."""

import argparse
import sys
import time

from sqlalchemy import text

from benchmarks.report import Options, Report, open_report
from benchmarks.sandbox import running_servers, settings_in, temporary_root
from benchmarks.scale.fill import fill
from benchmarks.scale.statements import ACTIONS, PAGE_JOBS, explain, time_action
from db.connection import Database

NUM_ROWS, NUM_QUICK_ROWS = 1_000_000, 50_000
LIMIT_MS = 5.0
_RUNNING = "SELECT id FROM chunks WHERE state = 'running' ORDER BY id LIMIT 2"
_PAGE = f"SELECT id FROM jobs WHERE service_class = 'batch' ORDER BY id DESC LIMIT {PAGE_JOBS}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=0, metavar="N")
    parser.add_argument("--quick", action="store_true", help="few rows: to see that it works")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--plans", action="store_true", help="print every plan to the standard error")
    given = parser.parse_args()
    num_rows = given.rows or (NUM_QUICK_ROWS if given.quick else NUM_ROWS)
    report = open_report(f"Statements with {num_rows:,} request rows", Options(given.quick, given.json))
    with temporary_root() as root, running_servers(settings_in(root, "null=null:")) as settings:
        assert settings.database_url is not None
        database = Database(settings.database_url)
        try:
            return measure(database, num_rows, report, with_plans=given.plans)
        finally:
            database.close()


def measure(database: Database, num_rows: int, report: Report, *, with_plans: bool) -> int:
    begun = time.perf_counter()
    report.add("scale_rows", fill(database, num_rows), "rows")
    report.add("scale_fill_seconds", time.perf_counter() - begun, "s")
    with database.engine.connect() as connection:
        running = [row[0] for row in connection.execute(text(_RUNNING))]
        page = [row[0] for row in connection.execute(text(_PAGE))]
    info = {"running": running, "page": page}
    timings = {name: time_action(database, action, info) for name, action in ACTIONS.items()}
    cells = {name: {"median": timing.median_ms, "worst": timing.worst_ms} for name, timing in timings.items()}
    report.table("scale", "ms", cells)
    slow = [name for name, timing in timings.items() if timing.median_ms > LIMIT_MS]
    for name, action in ACTIONS.items():
        if with_plans or name in slow:
            print(f"\n== {name}", *explain(database, action, info), sep="\n", file=sys.stderr)
    if slow:
        print(f"over {LIMIT_MS:g} ms: {', '.join(slow)}", file=sys.stderr)
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
