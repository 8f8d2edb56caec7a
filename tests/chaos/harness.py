"""One run: a job, the strikes while it runs, and the comparison at its end."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from tests.chaos.check import Differences, differences, run_again
from tests.chaos.facts import Facts
from tests.chaos.load import Asker, Loop, Neighbour, is_there, submit
from tests.chaos.schedule import Hit, Kind, Strike, never_hit, plan
from tests.chaos.stack import Stack, running_stack
from tests.null_answers import chat_rows, expected_answer
from tests.running import temporary_settings
from tests.servers import temporary_data_directory
from tests.world import changed

MODEL = "null"
LEASE_SECONDS = 3.0
PAUSE_SECONDS = LEASE_SECONDS + 2.0
LOOK_SECONDS = 0.1
VICTIM_SECONDS = 60.0  # until a victim that was struck before is back
END_SECONDS = 300.0  # from the last strike to the end of all jobs
SLOTS = 16
ROWS_IN_FLIGHT = 2 * 2 * SLOTS  # two engines let a batch worker have two rows per slot in flight
RESERVE = 1.15  # the rows should last a little longer than the strikes


def print_now(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # somebody may be waiting for it


@dataclass(frozen=True, slots=True)
class Options:
    """least_seconds: between strikes. most_seconds: how long progress may let the next strike wait."""

    seed: int
    num_kills: int
    num_rows: int
    least_seconds: float = 2.0
    most_seconds: float = 3.5
    say: Callable[[str], None] = print_now

    def delay_seconds(self) -> float:
        """Of the null model, so that rows are running as long as the strikes last."""
        strikes_seconds = len(plan(self.seed, self.num_kills)) * self.least_seconds
        return RESERVE * strikes_seconds * ROWS_IN_FLIGHT / self.num_rows


@dataclass(frozen=True, slots=True)
class Result:
    """again: arrivals at an engine that were not the first of their row. most_runs: of one row."""

    options: Options
    hits: list[Hit]
    never_hit: list[str]
    differences: Differences
    num_rows: int
    num_jobs: int
    again: int
    most_runs: int
    num_answered: int
    refused: Mapping[str, int]
    seconds: float

    @property
    def is_good(self) -> bool:
        return not self.never_hit and not self.differences

    def summary(self) -> str:
        found = self.differences
        kills = sum(not hit.strike.is_pause for hit in self.hits)
        return (
            f"chaos: seed={self.options.seed} kills={kills} pauses={len(self.hits) - kills} rows={self.num_rows} "
            f"jobs={self.num_jobs} lost={found.lost} doubled={found.doubled} wrong={found.wrong} "
            f"miscounted={len(found.counts)} again={self.again} seconds={self.seconds:.0f} "
            f"{'ok' if self.is_good else 'FAILED'}"
        )

    def remarks(self) -> list[str]:
        missed = ", ".join(self.never_hit)
        return [
            f"{self.again} of {self.num_rows} rows ran again, one of them {self.most_runs} times in all",
            f"online requests: {self.num_answered} answered; not answered: {dict(self.refused)}",
            *self.differences.counts,
            *([f"never hit while rows were running: {missed}"] if missed else []),
        ]

    def table(self) -> list[str]:
        """Markdown: how often each kind of victim was hit."""
        kills = Counter(hit.strike.kind for hit in self.hits if not hit.strike.is_pause)
        pauses = Counter(hit.strike.kind for hit in self.hits if hit.strike.is_pause)
        rows = [f"| {kind.value} | {kills[kind]} | {pauses[kind] or ''} |" for kind in Kind]
        return ["| victim | SIGKILL | SIGSTOP |", "|---|---|---|", *rows]


def run(options: Options) -> Result:
    slow = f"{options.delay_seconds():.3f}"
    quick = {"engine_slots": SLOTS, "chunk_rows": 50, "lease_seconds": LEASE_SECONDS, "reconcile_seconds": 1.0}
    with temporary_settings(node_name="first", **quick) as settings, temporary_data_directory() as node_data:
        journal = settings.data_path.parent / "journal"
        settings = changed(settings, models=f"{MODEL}=null:{slow}>{journal}")
        with running_stack(settings, node_data) as stack:
            return _Run(options, stack, journal).run()


class _Run:
    def __init__(self, options: Options, stack: Stack, journal: Path) -> None:
        self._options = options
        self._stack = stack
        self._journal = journal
        self._facts = Facts(stack.database_url, stack.url)
        self._hits: list[Hit] = []
        self._began = time.monotonic()

    def run(self) -> Result:
        rows = chat_rows(self._options.num_rows, MODEL, f"seed {self._options.seed} question")
        asker = Asker(self._stack.url, MODEL)
        neighbour = Neighbour(self._stack.node.settings, MODEL, self._options.seed)
        job = submit(self._stack.url, rows)
        loops = [Loop("asker", asker.step), Loop("neighbour", neighbour.step)]
        try:
            self._wait(lambda: self._num_done(job) or None, "the job begins")
            self._strike_all(job)
        finally:
            for loop in loops:
                loop.close()
            neighbour.close()
        self._stack.resume_all()
        self._wait(lambda: self._is_over() or None, "all jobs end")
        self._wait(lambda: is_there(self._stack.url) or None, "the API answers")
        expected = {job: {str(row["custom_id"]): expected_answer(row) for row in rows}, **neighbour.expected}
        return self._result(job, expected, asker)

    def _strike_all(self, job: str) -> None:
        strikes = plan(self._options.seed, self._options.num_kills)
        struck_at = time.monotonic()
        for number, strike in enumerate(strikes, 1):
            due_rows = self._options.num_rows * number // (len(strikes) + 1)
            while not self._is_due(job, struck_at, due_rows):
                self._tick()
            self._hit(strike)
            struck_at = time.monotonic()

    def _is_due(self, job: str, struck_at: float, due_rows: int) -> bool:
        """By progress, so that the rows last as long as the strikes; by the clock, where nothing progresses."""
        waited = time.monotonic() - struck_at
        if waited < self._options.least_seconds:
            return False
        return waited > self._options.most_seconds or (self._num_done(job) or 0) >= due_rows

    def _hit(self, strike: Strike) -> None:
        deadline = time.monotonic() + VICTIM_SECONDS
        while time.monotonic() < deadline:
            victims = self._stack.victims(strike.kind)
            if victims and self._send(strike, victims[strike.pick % len(victims)]):
                self._hits.append(Hit(strike, time.time()))
                self._say(f"{'paused' if strike.is_pause else 'killed'} {strike.kind.value}")
                return
            self._tick()
        self._say(f"no {strike.kind.value} to be found")

    def _send(self, strike: Strike, victim: psutil.Process) -> bool:
        return self._stack.pause(victim, PAUSE_SECONDS) if strike.is_pause else self._stack.kill(victim)

    def _tick(self) -> None:
        self._stack.keep_running()
        time.sleep(LOOK_SECONDS)

    def _num_done(self, job: str) -> int | None:
        try:
            return self._facts.num_done(job)
        except psycopg.Error:
            return None

    def _is_over(self) -> bool:
        try:
            return not self._facts.unfinished()
        except psycopg.Error:
            return False

    def _wait(self, holds: Callable[[], object], what: str) -> None:
        """Raises AssertionError with all that can be seen when it takes too long."""
        deadline = time.monotonic() + END_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{what}: not within {END_SECONDS:.0f} s; unfinished: {self._facts.unfinished()}\n"
                    f"{self._stack.up.tail()}\n{self._stack.node.tail()}"
                )
            self._tick()

    def _result(self, job: str, expected: dict[str, dict[str, str]], asker: Asker) -> Result:
        found = Differences()
        ended = self._facts.ended(expected)
        for one in ended:
            found.add(differences(one, max_attempts=1 + len(self._hits)))
        found.wrong += len(asker.wrong)
        found.counts += [f"online request {name} ended without an outcome" for name in self._facts.wrong_online()]
        again, most_runs = run_again(self._journal.read_text().split())
        return Result(
            options=self._options,
            hits=self._hits,
            never_hit=never_hit(self._hits, *self._facts.span(job)),
            differences=found,
            num_rows=sum(len(one.expected) for one in ended),
            num_jobs=len(ended),
            again=again,
            most_runs=most_runs,
            num_answered=asker.num_answered,
            refused=asker.refused,
            seconds=time.monotonic() - self._began,
        )

    def _say(self, line: str) -> None:
        self._options.say(f"{time.monotonic() - self._began:6.1f} s  {line}")
