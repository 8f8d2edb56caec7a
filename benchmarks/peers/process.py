"""The process of a peer, of which at most one works at any time: all others are stopped between their turns, as idle
engines may spin. What is measured is the time that the peer itself says a turn took, what everybody else on the
machine did meanwhile, and how long the process needed to become ready.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.channel import Setup, Turn, TurnDone
from benchmarks.peers.environment import PeerFailed
from benchmarks.processes import OTHERS, Reading, cores_used, machine_cpu_seconds
from core.lifeline import PARENT_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 900.0
TURN_SECONDS = 1800.0
END_SECONDS = 20.0
STOP_SECONDS, POLL_SECONDS = 10.0, 0.002
QUOTED_LINES = 3
THREAD_PREFIXES = ("OMP_", "KMP_", "GOMP_", "MKL_")  # every engine chooses its threads itself
BENCHMARK, PEER = "benchmark", "peer"


@dataclass(frozen=True, slots=True)
class Launch:
    """python, module: what is run. environment: beside that of this process. log: takes what it prints."""

    python: Path
    module: str
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """other_cores: that everybody else kept busy meanwhile."""

    num_answer_tokens: int
    seconds: float
    other_cores: float

    @property
    def tokens_per_second(self) -> float:
        return self.num_answer_tokens / self.seconds


class PeerProcess:
    """Is ready, and stopped, once made. Every method may raise PeerFailed."""

    def __init__(self, launch: Launch, setup: Setup) -> None:
        self._log = launch.log
        started = time.perf_counter()
        reader, writer = os.pipe()
        with launch.log.open("w") as log:
            self._process = subprocess.Popen(
                [str(launch.python), "-m", launch.module, str(writer), json.dumps(asdict(setup))],
                cwd=ROOT,
                env=_environment(launch.environment),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                pass_fds=[writer],
            )
        os.close(writer)
        self._replies = os.fdopen(reader)
        try:
            self._reply(READY_SECONDS)
        except BaseException:
            self.close()
            raise
        self.ready_seconds = time.perf_counter() - started
        self._stop()

    def run(self, turn: Turn) -> Measured:
        self._continue()
        before = self._reading()
        done = TurnDone(**self._ask(turn))
        used = cores_used(before, self._reading())
        self._stop()
        if done.num_answer_tokens != turn.num_answer_tokens:
            raise PeerFailed(f"expected {turn.num_answer_tokens} answer tokens, got {done.num_answer_tokens}")
        return Measured(done.num_answer_tokens, done.seconds, used[OTHERS]["cores"])

    def close(self) -> None:
        processes = self._tree()
        self._continue()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        _, alive = psutil.wait_procs(processes, END_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._replies.close()

    def _ask(self, turn: Turn) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            print(json.dumps(asdict(turn)), file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise self._ended() from error
        answer: dict[str, Any] = self._reply(TURN_SECONDS)
        return answer

    def _reply(self, timeout_seconds: float) -> Any:
        if not select.select([self._replies], [], [], timeout_seconds)[0]:
            raise PeerFailed(f"expected an answer within {timeout_seconds:.0f} s, got none; its log is {self._log}")
        line = self._replies.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> PeerFailed:
        status = self._process.wait()
        last = " / ".join(self._log.read_text(errors="replace").splitlines()[-QUOTED_LINES:])
        return PeerFailed(f"expected it to run, but it ended with status {status}: {last}; its log is {self._log}")

    def _reading(self) -> Reading:
        own = os.times()
        parts = {BENCHMARK: own.user + own.system, PEER: sum(map(_cpu_seconds, self._tree()))}
        return Reading(time.perf_counter(), parts, machine_cpu_seconds())

    def _tree(self) -> list[psutil.Process]:
        """The parent first; nobody once it has ended."""
        if self._process.poll() is not None:
            return []
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _stop(self) -> None:
        """Returns once none of its processes can disturb the next peer."""
        processes = self._tree()
        _signal(processes, signal.SIGSTOP)
        deadline = time.monotonic() + STOP_SECONDS
        while not all(map(_is_still, processes)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _continue(self) -> None:
        _signal(reversed(self._tree()), signal.SIGCONT)


@contextmanager
def closing(processes: dict[str, PeerProcess]) -> Iterator[None]:
    """Whatever happens, a termination included, none of the stopped processes is left behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        for process in processes.values():
            process.close()
        signal.signal(signal.SIGTERM, before)


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(THREAD_PREFIXES)}
    return {**inherited, PARENT_VARIABLE: str(os.getpid()), **own}


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _is_still(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
    return True


def _cpu_seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        return float(sum(process.cpu_times()[:2]))
    return 0.0
