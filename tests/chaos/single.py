"""A `millrace up` with a second beat beside it, and what tests do to it: one part struck at a time, on purpose."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import psycopg
import redis

from cli.local.postgresql import locate_cluster
from cli.local.valkey import valkey_url
from core.openai.completion import CHAT_ENDPOINT
from core.redis_url import client_url
from core.settings import Settings
from tests.chaos.check import Differences, differences
from tests.chaos.facts import Facts
from tests.chaos.load import submit
from tests.chaos.schedule import Kind
from tests.chaos.stack import WORDS, Command, await_line
from tests.null_answers import chat_rows, expected_answer
from tests.polling import until
from tests.running import temporary_settings
from tests.world import changed
from workers.instance import Instance, find_processes

MODEL, SLOW, SLOWER = "null", "slow", "slower"
SLOW_SECONDS = 2.0
OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "0"))


@dataclass
class Single:
    up: Command
    url: str
    database_url: str
    redis_url: str
    expected: dict[str, dict[str, str]] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)

    @property
    def facts(self) -> Facts:
        return Facts(self.database_url, self.url)

    def start(self, num_rows: int, model: str = MODEL) -> str:
        """A batch, returned when its first rows are done."""
        job = self.submit(num_rows, model)
        until(lambda: self.facts.num_done(job) > 0)
        return job

    def submit(self, num_rows: int, model: str = MODEL) -> str:
        rows = chat_rows(num_rows, model, f"batch {len(self.expected)} question")
        job = submit(self.url, rows)
        self.remember(job, rows)
        return job

    def remember(self, job: str, rows: list[dict[str, object]]) -> None:
        self.expected[job] = {str(row["custom_id"]): expected_answer(row) for row in rows}

    def finish(self, max_attempts: int = 2) -> Differences:
        """Waits for the end of all batches and compares those that were not compared before."""
        until(self.is_over)
        until(self.answers)
        found = Differences()
        for job in self.facts.ended(self.expected):
            if job.name not in self.compared:
                found.add(differences(job, max_attempts))
                self.compared.add(job.name)
        return found

    def is_over(self) -> bool:
        try:
            return not self.facts.unfinished()
        except psycopg.Error:
            return False

    def part(self, kind: Kind) -> psutil.Process:
        (found,) = self.up.parts(WORDS[kind])
        return found

    def log(self, name: str) -> str:
        return Instance.of(self.up.settings).log_path(name).read_text(errors="replace")

    def ask(self, question: str, model: str = MODEL) -> httpx.Response:
        messages = [{"role": "user", "content": question}]
        return httpx.post(f"{self.url}{CHAT_ENDPOINT}", json={"model": model, "messages": messages}, timeout=60)

    def online_prompts(self) -> str:
        """The bodies of the online requests that were taken."""
        query = (
            "SELECT string_agg(body, '') FROM requests r JOIN jobs j ON j.id = r.job_id WHERE service_class = 'online'"
        )
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute(query).fetchone()
        return str(row[0]) if row else ""

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def half_files(self) -> list[str]:
        """What is left in the file store of files that were never finished."""
        folder = Path(self.up.settings.file_store.removeprefix("file://"))
        return [path.name for path in folder.iterdir() if path.suffix == ".part"]

    def flush_redis(self) -> None:
        with redis.Redis.from_url(client_url(self.redis_url)) as client:
            client.flushall()

    @contextmanager
    def without(self, kind: Kind) -> Iterator[None]:
        """The part is dead, and nobody starts it again, until the end of the `with`, for OUTAGE_SECONDS at least."""
        self.up.process.send_signal(signal.SIGSTOP)
        try:
            self.part(kind).kill()
            began = time.monotonic()
            yield
            until(lambda: time.monotonic() - began >= OUTAGE_SECONDS, deadline_seconds=2 * OUTAGE_SECONDS + 1)
        finally:
            self.up.process.send_signal(signal.SIGCONT)

    @contextmanager
    def frozen(self, *words: str) -> Iterator[None]:
        """Processes with one of the words in their name or command line stand still; their supervisor does not mind."""
        found = [one for one in find_processes(Instance.of(self.up.settings).identity) if _is_named(one, words)]
        for process in found:
            process.suspend()
        try:
            yield
        finally:
            for process in found:
                process.resume()


def _is_named(process: psutil.Process, words: tuple[str, ...]) -> bool:
    said = " ".join([process.name(), *process.cmdline()])
    return any(word in said for word in words)


class Asked:
    """A question asked on a thread: `response` or `error` once there is one."""

    def __init__(self, single: Single, question: str, model: str) -> None:
        self.response: httpx.Response | None = None
        self.error: httpx.HTTPError | None = None
        self._thread = threading.Thread(target=self._ask, args=(single, question, model), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    def _ask(self, single: Single, question: str, model: str) -> None:
        try:
            self.response = single.ask(question, model)
        except httpx.HTTPError as error:
            self.error = error


class Reading:
    """A stream that is read to its end on a thread: `text` is what has come, `error` what broke it."""

    def __init__(self, single: Single, method: str, path: str, body: dict[str, object] | None = None) -> None:
        self.text = ""
        self.error: httpx.HTTPError | None = None
        self._thread = threading.Thread(target=self._read, args=(method, f"{single.url}{path}", body), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    def data(self) -> list[dict[str, Any]]:
        """Of all events but the last one of OpenAI's, which is no object."""
        lines = [line.removeprefix("data: ") for line in self.text.splitlines() if line.startswith("data: {")]
        return [msgspec.json.decode(line) for line in lines]

    def _read(self, method: str, url: str, body: dict[str, object] | None) -> None:
        try:
            with httpx.stream(method, url, json=body, timeout=60) as response:
                for text in response.iter_text():
                    self.text += text
        except httpx.HTTPError as error:
            self.error = error


@contextmanager
def running_single() -> Iterator[Single]:
    models = f"{MODEL}=null:0.2,{SLOW}=null:{SLOW_SECONDS},{SLOWER}=null:60"
    quick = {"engine_slots": 16, "chunk_rows": 50, "lease_seconds": 3.0, "reconcile_seconds": 1.0}
    with temporary_settings(models=models, **quick) as settings:
        root = settings.data_path.parent
        settings = changed(settings, file_store=f"file://{root}/files")
        up = Command(("up", "--no-flower"), settings, root / "up.txt")
        beats: list[Command] = []
        try:
            await_line(up, "Millrace is ready")
            instance = Instance.of(settings)
            database_url, redis_url = locate_cluster(instance, print).url, valkey_url(instance)
            beats.append(_second_beat(settings, database_url, redis_url, root / "beat.txt"))
            yield Single(up, f"http://127.0.0.1:{settings.port}", database_url, redis_url)
        finally:
            for command in (*beats, up):
                command.clear()


def _second_beat(settings: Settings, database_url: str, redis_url: str, output: Path) -> Command:
    elsewhere = str(output.with_name("second-beat"))
    own = msgspec.structs.replace(settings, database_url=database_url, redis_url=redis_url, data_dir=elsewhere)
    return Command(("beat",), own, output)
