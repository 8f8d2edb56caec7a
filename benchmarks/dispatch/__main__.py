"""`python -m benchmarks.dispatch [--quick] [--json] [--requests N] [--rounds N] [--leases]`: the dispatch line with
default settings and the null engine, through a real `millrace up`: HTTP, Celery, ZMQ, and a database that syncs to its
disk.

Rows per second from `batches.create` to `completed`; the time to the first row; what a kill of the batch worker or the
engine makes run again; and how two equal tenants share the engine. With `--leases` instead of all that, what short and
long leases cost, which takes seven minutes."""

from benchmarks.dispatch.fairness import measure_fairness
from benchmarks.dispatch.kills import measure_kills
from benchmarks.dispatch.leases import FULL, QUICK, measure_leases
from benchmarks.dispatch.line import MODEL, ROW_BYTES, measure_line, summarize_line
from benchmarks.report import Options, open_report, options_of, options_parser
from benchmarks.sandbox import embedded_database_url, running_servers, settings_in, temporary_root
from cli.local.running import running
from db.connection import Database

NUM_ROWS, NUM_QUICK_ROWS = 50_000, 10_000
ROUNDS = 3
QUICK_KILLS, NUM_KILLS = 2, 6


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--leases", action="store_true", help="what the length of a lease costs, and nothing else")
    given = parser.parse_args()
    measure = measure_lengths if given.leases else measure_all
    measure(options_of(given))


def measure_lengths(options: Options) -> None:
    report = open_report("The length of a lease", options)
    with temporary_root() as root:
        measure_leases(root, report, QUICK if options.is_quick else FULL)


def measure_all(options: Options) -> None:
    num_rows = options.num_requests or (NUM_QUICK_ROWS if options.is_quick else NUM_ROWS)
    rounds = options.num_rounds or (1 if options.is_quick else ROUNDS)
    report = open_report(f"Dispatch of {num_rows:,} rows of {ROW_BYTES} bytes, median of {rounds}", options)
    with temporary_root() as root:
        settings = settings_in(root, f"{MODEL}=null:")
        with running(settings) as started:
            runs = measure_line(started, embedded_database_url(settings), num_rows, rounds)
        summarize_line(runs, report)
    with temporary_root() as root:
        measure_kills(root, report, num_kills=QUICK_KILLS if options.is_quick else NUM_KILLS)
    with temporary_root() as root, running_servers(settings_in(root, f"{MODEL}=null:")) as settings:
        assert settings.database_url is not None
        database = Database(settings.database_url)
        measure_fairness(database, settings, report)
        database.close()


if __name__ == "__main__":
    main()
