"""Makes a directory appear under its name whole or not at all, and lets one process at a time make it.

The work is done in a hidden sibling, which is renamed at the end. Whoever holds the lock may take away a sibling that a
killed process left behind: nobody else can be writing it.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from core.errors import Conflict, Unavailable

_POLL_SECONDS = 0.1


@contextmanager
def locked(directory: Path, timeout_seconds: float, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Alone among all processes that lock this directory, which need not exist.

    Gives whether it had to wait; `on_wait` is called before.

    Raises Unavailable when the other one is not done in time.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:  # left behind: to remove it would be a race
        has_waited = not _try_lock(lock)
        if has_waited:
            on_wait()
            _lock_in_time(lock, directory, timeout_seconds)
        yield has_waited


@contextmanager
def appearing_whole(directory: Path) -> Iterator[Path]:
    """Gives a directory to fill. Call it under `locked`.

    Raises Conflict where `directory` already holds something.
    """
    partial = directory.parent / f".{directory.name}.partial"
    _check_free(directory)
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        _check_free(directory)
        partial.rename(directory)
        _flush_entry(directory.parent)
    finally:
        _remove(partial)


def _try_lock(lock: IO[str]) -> bool:
    with suppress(BlockingIOError):  # that is the answer "no"
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _lock_in_time(lock: IO[str], directory: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not _try_lock(lock):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"another process has been making {directory} for more than {timeout_seconds:.0f} s; "
                "wait for it or end it, then try again"
            )
        time.sleep(_POLL_SECONDS)


def _check_free(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise Conflict(
            f"{directory} exists but does not hold the complete model; remove it, or choose another directory"
        )


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _flush(directory: Path) -> None:
    """After a power failure a renamed directory must not turn out to be full of empty files."""
    for path in directory.iterdir():
        _flush_entry(path)
    _flush_entry(directory)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
