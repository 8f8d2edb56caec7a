"""The directory where compiled libraries lie: whole ones only, of this user alone, and not for ever.

A library's name ends in the digest of its bytes. What a full disk, a power failure or a copy made shorter is not found:
to load it could end the process without a word (SIGBUS). Knows nothing of what compiles.
"""

import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

PREFIX = "millrace-"

_DIGEST_BYTES = 12
_KEPT_SECONDS = 90 * 24 * 3600  # after its last use
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class NotOurs(Exception):
    """Says in a sentence why no code is loaded from a directory."""


class LibraryCache:
    def __init__(self, directory: Path) -> None:
        """Makes the directory. Raises OSError, or NotOurs where somebody else could have put code there."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = directory.stat()
        if told.st_uid != os.geteuid() or told.st_mode & _OTHERS_MAY_WRITE:
            raise NotOurs(
                f"expected {directory} to belong to user {os.geteuid()} and to be writable by nobody else, got owner "
                f"{told.st_uid} and mode {stat.S_IMODE(told.st_mode):o}; remove it, or chown it and chmod it to 700"
            )
        self.directory = directory

    def find(self, stem: str) -> Path | None:
        """A whole library of that stem. Damaged ones count as absent; the next `add` overwrites them."""
        for path in sorted(self.directory.glob(f"{PREFIX}{stem}-*.so")):
            if path.name == _name(stem, path):
                _note_use(path)
                return path
        return None

    def add(self, stem: str, built: Path) -> Path:
        """By a rename, once the bytes are on the disk. `built` lies on the same file system."""
        library = self.directory / _name(stem, built)
        _sync(built)
        built.replace(library)
        _sync(self.directory)
        self._prune()
        return library

    def _prune(self) -> None:
        oldest = time.time() - _KEPT_SECONDS
        for path in self.directory.glob(f"{PREFIX}*.so"):
            with suppress(FileNotFoundError):  # another engine may be quicker
                told = path.stat()
                if max(told.st_atime, told.st_mtime) < oldest:
                    path.unlink()


def _note_use(path: Path) -> None:
    with suppress(OSError):  # a disk that is only read prunes nothing either
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # many disks do not note it themselves


def _name(stem: str, library: Path) -> str:
    digest = hashlib.blake2b(library.read_bytes(), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{PREFIX}{stem}-{digest}.so"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
