"""`python -m tests.chaos.rolling --old REV [--rows 1000]`: an older release beside this one, on a database that this
one has migrated. A job begins on the old release; then part by part is replaced by this one, and back again, each by
SIGTERM and under load, and in the end every row is compared. Its last line holds the counts; exit status 1 on any
difference. `--logs` names a directory for what all parts said.

Node `first` has a whole Millrace, node `second` an engine and a batch worker, so that workers of both releases claim
from the same job. The servers are this process's own.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
from openai import OpenAI

from cli.local.servers import embedded_servers
from cli.local.up import migrate
from core.settings import Settings
from tests.chaos.check import Differences, Ended, differences
from tests.chaos.facts import Facts
from tests.chaos.harness import print_now
from tests.chaos.load import Asker, Loop, is_there, submit
from tests.chaos.release import NEW, Place, Release, checked_out
from tests.null_answers import chat_rows, expected_answer
from tests.polling import until
from tests.running import temporary_settings
from tests.servers import temporary_data_directory
from tests.world import changed
from workers.instance import Instance
from workers.supervisor import Supervisor

MODEL = "null"
ROW_SECONDS = 0.5
VISITOR_ROWS = 50
QUICK = {"engine_slots": 8, "chunk_rows": 25, "reconcile_seconds": 1.0, "auth": "local", "devices": "cpu"}

FIRST = ("engine-cpu", "control", "upkeep", "online-cpu", "batch-cpu", "beat", "api")
SECOND = ("engine-cpu", "batch-cpu")
# What is replaced together, one after the other: (node, part). Engines after the workers that use them, as a node that
# is asked to end stops them: an engine of an earlier release does not say that it is about to end.
STEPS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("first", "batch-cpu"),),
    (("first", "online-cpu"), ("first", "batch-cpu"), ("first", "engine-cpu")),
    (("first", "upkeep"), ("first", "control")),
    (("first", "beat"),),
    (("first", "api"),),
    (("second", "batch-cpu"), ("second", "engine-cpu")),
)


@dataclass(frozen=True, slots=True)
class Result:
    """complaints: lines of errors in the logs of the parts, one of each kind."""

    old: Release
    differences: Differences
    num_rows: int
    num_jobs: int
    num_replaced: int
    num_answered: int
    refused: dict[str, int]
    complaints: list[str]
    seconds: float

    @property
    def is_good(self) -> bool:
        return not self.differences and self.num_answered > 0

    def remarks(self) -> list[str]:
        return [
            f"online requests: {self.num_answered} answered; not answered: {self.refused}",
            *self.differences.counts,
            *(f"logged: {line}" for line in self.complaints),
        ]

    def summary(self) -> str:
        found = self.differences
        return (
            f"rolling: old={self.old.name} replaced={self.num_replaced} rows={self.num_rows} jobs={self.num_jobs} "
            f"lost={found.lost} doubled={found.doubled} wrong={found.wrong} miscounted={len(found.counts)} "
            f"seconds={self.seconds:.0f} {'ok' if self.is_good else 'FAILED'}"
        )


@dataclass
class Visitor:
    """Submits batches through whatever API is there; what each asks for is in its metadata, so that one whose answer
    got lost is known too."""

    url: str
    num_batches: int = 0
    latest: str | None = None
    facts: Facts = field(kw_only=True)

    def step(self) -> None:
        if self.latest is None or not any(self.latest in name for name in self.facts.unfinished()):
            try:
                self.latest = self.submit(VISITOR_ROWS)
            except openai.APIError:
                return

    def submit(self, num_rows: int) -> str:
        self.num_batches += 1
        prompt = f"batch {self.num_batches} question"
        rows = chat_rows(num_rows, MODEL, prompt)
        return submit(self.url, rows, {"prompt": prompt, "rows": str(num_rows)})

    def expected(self) -> dict[str, dict[str, str]]:
        """Batch -> custom_id -> answer."""
        with OpenAI(base_url=f"{self.url}/v1", api_key="unused") as client:
            asked = {batch.id: batch.metadata or {} for batch in client.batches.list(limit=100)}
        return {
            batch: {
                str(row["custom_id"]): expected_answer(row)
                for row in chat_rows(int(metadata["rows"]), MODEL, metadata["prompt"])
            }
            for batch, metadata in asked.items()
        }


class Rolling:
    """places: by node and part."""

    def __init__(
        self, places: dict[tuple[str, str], Place], url: str, facts: Facts, say: Callable[[str], None] = print_now
    ) -> None:
        self.num_replaced = 0
        self.facts = facts
        self.visitor = Visitor(url, facts=facts)
        self.asker = Asker(url, MODEL)
        self._places = places
        self._url = url
        self._say = say
        self._began = time.monotonic()

    def start(self, release: Release) -> None:
        self._bring_up(list(self._places.values()), release)

    def roll(self, old: Release, num_rows: int) -> None:
        """There and back, with rows running at every step."""
        big = self._begin(num_rows)
        loops = [Loop("asker", self.asker.step), Loop("visitor", self.visitor.step)]
        try:
            for release in (NEW, old):
                for step in STEPS:
                    if self.facts.num_done(big) > num_rows / 4:
                        big = self._begin(num_rows // 2)
                    self._replace([self._places[key] for key in step], release)
        finally:
            for loop in loops:
                loop.close()
        until(lambda: not self.facts.unfinished())
        until(lambda: is_there(self._url))

    def _begin(self, num_rows: int) -> str:
        job = self.visitor.submit(num_rows)
        until(lambda: self.facts.num_done(job) > 0)
        return job

    def ended(self) -> list[Ended]:
        return self.facts.ended(self.visitor.expected())

    def complaints(self) -> list[str]:
        """Lines that tell of an error, each kind once."""
        lines = [line for path in self.log_paths() for line in path.read_text(errors="replace").splitlines()]
        wrong = [line for line in lines if " ERROR " in line or " CRITICAL " in line]
        return sorted({line.partition("Z ")[2][:200] for line in wrong})

    def keep_logs(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for (node, name), place in self._places.items():
            if not place.log_path.exists():  # it was never started
                continue
            shutil.copy(place.log_path, folder / f"{node}-{name}.log")

    def log_paths(self) -> list[Path]:
        return [place.log_path for place in self._places.values()]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def _replace(self, places: Sequence[Place], release: Release) -> None:
        workers = [place for place in places if not place.is_engine]
        for group in (workers, [place for place in places if place.is_engine]):
            for place in group:
                place.ask_to_end()
            for place in group:
                place.await_end()
        self._bring_up(places, release)
        self.num_replaced += len(places)
        names = ", ".join(place.title for place in places)
        self._say(f"{self.seconds:6.1f} s  {names}: {release.name}; unfinished: {', '.join(self.facts.unfinished())}")

    def _bring_up(self, places: Sequence[Place], release: Release) -> None:
        for place in places:
            place.start(release)
        for place in places:
            place.await_ready(release)


def run(revision: str, num_rows: int, logs: Path | None = None) -> Result:
    models = f"{MODEL}=null:{ROW_SECONDS}"
    with ExitStack() as stack:
        settings = stack.enter_context(temporary_settings(node_name="first", models=models, **QUICK))
        old = stack.enter_context(checked_out(revision, settings.data_path.parent))
        settings = stack.enter_context(running_servers(settings))
        second = changed(settings, node_name="second", data_dir=str(stack.enter_context(temporary_data_directory())))
        places = {("first", name): Place(name, settings) for name in FIRST}
        places |= {("second", name): Place(name, second) for name in SECOND}
        for place in places.values():
            stack.callback(place.clear)
        assert settings.database_url is not None
        url = f"http://{settings.host}:{settings.port}"
        rolling = Rolling(places, url, Facts(settings.database_url, url))
        if logs is not None:
            stack.callback(rolling.keep_logs, logs)
        rolling.start(old)
        rolling.roll(old, num_rows)
        return _result(rolling, old)


def _result(rolling: Rolling, old: Release) -> Result:
    found = Differences()
    ended = rolling.ended()
    num_restarts = 2 * sum("batch-cpu" in name or "engine-cpu" in name for step in STEPS for _, name in step)
    for job in ended:
        found.add(differences(job, 1 + num_restarts, old.least_row_attempt))
    found.counts += [f"more than one attempt of chunk {name} handed back" for name in rolling.facts.counted()]
    found.wrong += len(rolling.asker.wrong)
    found.counts += [f"online request {name} ended without an outcome" for name in rolling.facts.wrong_online()]
    return Result(
        old=old,
        differences=found,
        num_rows=sum(len(job.expected) for job in ended),
        num_jobs=len(ended),
        num_replaced=rolling.num_replaced,
        num_answered=rolling.asker.num_answered,
        refused=dict(rolling.asker.refused),
        complaints=rolling.complaints(),
        seconds=rolling.seconds,
    )


@contextmanager
def running_servers(settings: Settings) -> Iterator[Settings]:
    """PostgreSQL, migrated by this release, and Valkey; the settings that name them."""
    with temporary_data_directory() as data_path:
        own = changed(settings, data_dir=str(data_path))
        instance = Instance.of(own)
        instance.prepare()
        own, parts = embedded_servers(own, print_now)
        supervisor = Supervisor(instance, lambda _: None)
        try:
            supervisor.launch(parts)
            supervisor.wait_ready()
            migrate(own)
            yield changed(settings, database_url=own.database_url, redis_url=own.redis_url)
        finally:
            supervisor.stop_all()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.rolling")
    parser.add_argument("--old", required=True, metavar="REV", help="the commit that is the older release")
    parser.add_argument("--rows", type=int, default=1_000, help="of the first job; more follow")
    parser.add_argument("--logs", type=Path, help="a directory for what all parts said")
    given = parser.parse_args()
    result = run(given.old, given.rows, given.logs)
    sys.stdout.write("\n".join([*result.remarks(), result.summary()]) + "\n")
    return 0 if result.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
