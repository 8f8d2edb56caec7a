"""Starting and ending one child process: environment, session, log file, priority. Which and when is decided elsewhere.

A child is the leader of a session of its own, so that Ctrl-C in the terminal reaches only its supervisor, and gets its
stop signal from the kernel when the supervisor dies. Children must be started from the main thread, which lives as
long as the process: the kernel watches the thread that forked, not the process.
"""

import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from core.errors import ConfigurationError
from core.lifeline import INSTANCE_VARIABLE, PARENT_VARIABLE
from workers.instance import Instance
from workers.part import Part, safe_python_path

MAX_LOG_BYTES = 16 * 1024 * 1024
TAIL_BYTES = 16 * 1024
OWN_ROOT = Path(__file__).resolve().parent.parent
OWN_MODULES = ("api", "cache", "cli", "core", "db", "engine", "planner", "analysis", "tasks", "workers")

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Child:
    """log_offset: where in its log this process began to write."""

    process: "subprocess.Popen[bytes]"
    log_offset: int


def spawn(part: Part, instance: Instance) -> Child:
    """Start a part. Raises ConfigurationError when the program cannot be run."""
    account = part.account
    try:
        with open_log(instance.log_path(part.name)) as log:
            offset = log.tell()
            process = subprocess.Popen(
                list(part.argv),
                env=child_environment(part.env, instance.identity, os.environ),
                cwd=part.cwd or _empty_directory(instance.working_path(part.name)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                preexec_fn=_before_exec(part),
            )
            return Child(process, offset)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"cannot start {part.name} ({part.argv[0]}): {error}") from error


def child_environment(extra: Mapping[str, str | None], identity: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The supervisor's environment, `extra`, and what ties the child to its supervisor."""
    python_path = safe_python_path(environ.get("PYTHONPATH", ""), OWN_ROOT, OWN_MODULES)
    merged = {
        **environ,
        "PYTHONPATH": python_path or None,
        "PYTHONUNBUFFERED": "1",
        **extra,
        PARENT_VARIABLE: str(os.getpid()),
        INSTANCE_VARIABLE: identity,
    }
    return {name: value for name, value in merged.items() if value is not None}


def open_log(path: Path) -> IO[bytes]:
    """Append to a log, after putting a large one aside: one older file is kept."""
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def log_tail(path: Path, offset: int = 0, num_lines: int = 15) -> str:
    """The last lines of a log, indented, for a message. Nothing from before `offset`, where a start wrote first."""
    if not path.exists():  # somebody tidied up
        return ""
    with path.open("rb") as file:
        file.seek(max(offset, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()[-num_lines:]
    return "\n".join(f"    {line}" for line in lines)


def describe_exit(status: int) -> str:
    """`status` as Popen gives it: negative is a signal."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def kill_tree(child: "subprocess.Popen[bytes]") -> None:
    """SIGKILL a child, if it still runs, and what it started. PostgreSQL's backends lead sessions of their own, so
    its group is not enough."""
    below = _descendants(child.pid) if child.poll() is None else []
    _kill_group(child.pid)
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    child.wait()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # nobody left in it (macOS reports zombies as PermissionError)
        return


def _empty_directory(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _before_exec(part: Part) -> Callable[[], None]:
    """What the child does between fork and exec. Everything is looked up here, before the fork."""
    parent = os.getpid()
    prctl = _prctl()

    def prepare() -> None:
        if part.nice:
            os.nice(part.nice)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(part.stop_signal), 0, 0, 0)
            if os.getppid() != parent:  # died between fork and prctl
                os._exit(1)

    return prepare


@functools.cache
def _prctl() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return function
