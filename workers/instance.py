"""One running Millrace on one data directory: where it keeps its logs and sockets, the lock that allows only one, and
the processes that an earlier one left behind.
"""

import fcntl
import logging
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.errors import ConfigurationError, Conflict
from core.lifeline import INSTANCE_VARIABLE
from core.settings import Settings

logger = logging.getLogger(__name__)

MAX_RUN_PATH_LENGTH = 75  # a socket path may have 107 bytes; PostgreSQL adds 25 of them, engines a device name


@dataclass(frozen=True, slots=True)
class Instance:
    data_path: Path
    run_path: Path

    @classmethod
    def of(cls, settings: Settings) -> "Instance":
        return cls(settings.data_path, settings.run_path)

    @property
    def identity(self) -> str:
        """The value of INSTANCE_VARIABLE in the environment of every process of this instance."""
        return self.run_path.name

    def log_path(self, name: str) -> Path:
        return self.data_path / "logs" / f"{name}.log"

    def working_path(self, name: str) -> Path:
        return self.data_path / "run" / name

    def prepare(self) -> None:
        """Make the directories. Raises ConfigurationError when they cannot be made, written or trusted."""
        if len(str(self.run_path)) > MAX_RUN_PATH_LENGTH:
            raise ConfigurationError(f"{self.run_path} is too long for Unix sockets: set TMPDIR to a shorter directory")
        make_directory(self.data_path, directory_mode())
        check_writable(self.data_path)
        make_directory(self.log_path("").parent, 0o700)
        make_directory(self.working_path("").parent, 0o700)
        make_directory(self.run_path, directory_mode())
        _check_own(self.run_path)

    def clear(self) -> None:
        """Remove the directory of the sockets, after everything has stopped; never one that somebody else made."""
        if _is_own(self.run_path):
            shutil.rmtree(self.run_path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The right to run on the data directory, which is made for it. Raises Conflict, naming the process, while
        another instance has it."""
        make_directory(self.data_path, directory_mode())
        check_writable(self.data_path)
        with (self.data_path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(
                    f"Millrace already runs on {self.data_path} (process {self.holder()}): stop it first, or give this "
                    "one another --data-dir"
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def holder(self) -> str | None:
        """The process id of the instance that runs on this data directory; None when there is none."""
        path = self.data_path / "lock"
        if not path.exists():
            return None
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
        return None


def directory_mode() -> int:
    """Root runs PostgreSQL as somebody else, who must get through to a directory of its own, but may list nothing."""
    return 0o711 if os.geteuid() == 0 else 0o700


def make_directory(path: Path, mode: int) -> None:
    """`path` and what is missing above it. A directory that exists keeps its mode: it is not ours to change."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        for directory in reversed(missing):
            directory.mkdir(exist_ok=True)
            directory.chmod(mode)  # whatever the umask
    except OSError as error:
        raise ConfigurationError(
            f"cannot make the directory {path} ({error.strerror}): give another one with --data-dir"
        ) from error


def check_writable(path: Path) -> None:
    """Raises ConfigurationError unless a file can be written in `path`."""
    probe = path / f".probe-{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"cannot write in {path} ({error.strerror}): make room or mend its permissions, or give another --data-dir"
        ) from error


def _check_own(path: Path) -> None:
    """Anybody may make a directory in /tmp under the name that we are about to use."""
    if not _is_own(path):
        raise ConfigurationError(f"{path} must be a directory that only you can write: remove it and start again")


def _is_own(path: Path) -> bool:
    """Whether it is a directory, no link to one, that nobody but us can write."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def end_leftovers(identity: str, grace_seconds: float = 10.0) -> list[str]:
    """End the processes of an instance whose supervisor was killed. Call it under the lock. Returns what was ended.

    PostgreSQL gets SIGINT, its fast shutdown; with SIGTERM it would wait for its clients.
    """
    found = find_processes(identity)
    for process in found:
        _signal(process, signal.SIGINT if _name(process).startswith("postgres") else signal.SIGTERM)
    _, alive = psutil.wait_procs(found, timeout=grace_seconds)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=grace_seconds)
    return [f"process {process.pid}" for process in found]


def find_processes(identity: str) -> list[psutil.Process]:
    """Processes of this instance, without this one and those above it."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in own and _belongs(process, identity)]


def _belongs(process: psutil.Process, identity: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(INSTANCE_VARIABLE) == identity
    except (psutil.Error, OSError):  # ended meanwhile, or somebody else's
        return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        logger.debug("process %d ended by itself", process.pid)
