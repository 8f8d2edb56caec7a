"""The processes: a `millrace up` with everything in it, and a `millrace node` of another data directory that uses the
same servers. Both are started again when they end, as a service manager would; what they started is found by its
command line.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
import psutil

from cli.local.postgresql import locate_cluster
from cli.local.valkey import valkey_url
from core.lifeline import PARENT_VARIABLE
from core.settings import PREFIX, Settings, settings_environment
from tests.chaos.schedule import Kind
from tests.polling import until
from workers.instance import Instance, find_processes

WORDS = {
    Kind.ONLINE: "online-cpu@",
    Kind.BATCH: "batch-cpu@",
    Kind.CONTROL: "control@",
    Kind.UPKEEP: "upkeep@",
    Kind.ENGINE: "engine.server",
    Kind.API: "api.server",
    Kind.BEAT: "tasks.scheduler:SteadyScheduler",
    Kind.VALKEY: "valkey-server",
    Kind.POSTGRESQL: "bin/postgres",
}
MILLRACE = (sys.executable, "-P", "-m", "cli.main")
START_SECONDS = 180.0
STOP_SECONDS = 90.0
RETURN_SECONDS = 1.0  # a service manager waits a moment too


class Command:
    """One `millrace …` that must be there: whoever ends, also by a failed start, is started again. program: another
    one than that. environment: in place of the settings."""

    def __init__(
        self,
        command: tuple[str, ...],
        settings: Settings,
        output: Path,
        program: tuple[str, ...] = MILLRACE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self.num_starts = 0
        self._argv = [*program, *command]
        self._environment = settings_environment(settings) if environment is None else environment
        self._output = output
        self._ended_at = 0.0
        self.process = self._spawn()

    def keep_running(self) -> None:
        if self.process.poll() is None:
            self._ended_at = time.monotonic()
        elif time.monotonic() - self._ended_at > RETURN_SECONDS:
            self.process = self._spawn()

    def parts(self, word: str) -> list[psutil.Process]:
        """Its children with the word in their command line."""
        try:
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if any(word in argument for argument in child.cmdline())]
        except psutil.Error:  # one of them has just ended
            return []

    def output(self) -> str:
        """Everything it said since its first start."""
        return self._output.read_text(errors="replace")

    def said(self, text: str) -> bool:
        return text in self.output()

    def tail(self) -> str:
        return "\n".join(self.output().splitlines()[-40:])

    def stop(self) -> int | None:
        """Its exit status; None when it had to be killed."""
        self.process.terminate()
        return self.await_end()

    def await_end(self) -> int | None:
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def clear(self) -> None:
        """Nothing is left of it, whatever happened."""
        self.process.kill()
        self.process.wait()
        for process in find_processes(Instance.of(self.settings).identity):
            _send(process, signal.SIGKILL)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self.num_starts += 1
        self._ended_at = time.monotonic()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        own = {**self._environment, PARENT_VARIABLE: str(os.getpid())}
        with self._open() as output:
            return subprocess.Popen(
                self._argv,
                env={**kept, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _open(self) -> IO[bytes]:
        return self._output.open("ab")


@dataclass
class Stack:
    """Everything that can be struck. resume: processes that are stopped, and when they go on (monotonic)."""

    up: Command
    node: Command
    url: str
    database_url: str
    redis_url: str
    resume: list[tuple[float, psutil.Process]] = field(default_factory=list)

    def keep_running(self) -> None:
        self.up.keep_running()
        self.node.keep_running()
        now = time.monotonic()
        for due, process in [entry for entry in self.resume if entry[0] <= now]:
            _send(process, signal.SIGCONT)
            self.resume.remove((due, process))

    def victims(self, kind: Kind) -> list[psutil.Process]:
        """Those that live and are not stopped."""
        if kind in (Kind.SUPERVISOR, Kind.AGENT):
            command = self.up if kind is Kind.SUPERVISOR else self.node
            return [psutil.Process(command.process.pid)] if command.process.poll() is None else []
        stopped = {process.pid for _, process in self.resume}
        found = [*self.up.parts(WORDS[kind]), *self.node.parts(WORDS[kind])]
        return sorted((one for one in found if one.pid not in stopped), key=lambda one: one.pid)

    def kill(self, victim: psutil.Process) -> bool:
        return _send(victim, signal.SIGKILL)

    def pause(self, victim: psutil.Process, seconds: float) -> bool:
        if not _send(victim, signal.SIGSTOP):
            return False
        self.resume.append((time.monotonic() + seconds, victim))
        return True

    def resume_all(self) -> None:
        self.resume = [(0.0, process) for _, process in self.resume]
        self.keep_running()


@contextmanager
def running_stack(settings: Settings, node_data: Path) -> Iterator[Stack]:
    """settings: of `millrace up`, with embedded servers. Raises AssertionError when it does not start."""
    output = settings.data_path.parent
    up = Command(("up", "--no-flower"), settings, output / "up.txt")
    commands = [up]
    try:
        await_line(up, "Millrace is ready")
        instance = Instance.of(settings)
        database_url = locate_cluster(instance, print).url
        redis_url = valkey_url(instance)
        second = msgspec.structs.replace(
            settings, data_dir=str(node_data), node_name="second", database_url=database_url, redis_url=redis_url
        )
        node = Command(("node",), second, output / "node.txt")
        commands.append(node)
        await_line(node, "node second is ready")
        yield Stack(up, node, f"http://{settings.host}:{settings.port}", database_url, redis_url)
    finally:
        for command in reversed(commands):
            command.clear()


def await_line(command: Command, text: str) -> None:
    def said() -> bool:
        assert command.process.poll() is None, command.tail()
        return command.said(text)

    until(said, deadline_seconds=START_SECONDS, told=command.tail)


def _send(process: psutil.Process, number: signal.Signals) -> bool:
    """False when it has ended meanwhile."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True
