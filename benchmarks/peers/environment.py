"""Environments of the peers' own, made once and kept in the user's cache directory, each with what its list names.

The pip of this environment fills them, so that nothing but Python itself is needed. They are made again when the list,
or the Python, has changed.
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import platformdirs

MARKER = "made-of"
INSTALL_SECONDS = 3600.0
QUOTED_CHARACTERS = 500


class PeerFailed(Exception):
    """A peer that cannot be set up, started or used; the others go on."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """file: in pip's format. unwanted: what comes along, and is removed again."""

    file: Path
    unwanted: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        lines = self.file.read_text(encoding="utf-8").splitlines()
        wanted = [line for line in lines if not line.startswith("#")]
        parts = [sys.version, *wanted, "without", *self.unwanted]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def cache_directory() -> Path:
    return platformdirs.user_cache_path("millrace", appauthor=False) / "peers"


def is_prepared(directory: Path, requirements: Requirements) -> bool:
    marker = directory / MARKER
    return marker.exists() and marker.read_text(encoding="utf-8") == requirements.digest


def prepare(directory: Path, requirements: Requirements) -> Path:
    """The interpreter of an environment in this directory. Raises PeerFailed; the next call begins anew then."""
    python = directory / "bin" / "python"
    if is_prepared(directory, requirements):
        return python
    shutil.rmtree(directory, ignore_errors=True)
    venv.create(directory, with_pip=False)
    _pip(python, "install", "--requirement", str(requirements.file))
    if requirements.unwanted:
        _pip(python, "uninstall", "--yes", *requirements.unwanted)
    (directory / MARKER).write_text(requirements.digest, encoding="utf-8")
    return python


def _pip(python: Path, verb: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check", verb]
    try:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PeerFailed(f"expected `pip {verb}` to end within {INSTALL_SECONDS:.0f} s, but it did not") from error
    if done.returncode != 0:
        said = done.stderr.strip()[-QUOTED_CHARACTERS:]
        raise PeerFailed(f"expected `pip {verb} {' '.join(arguments)}` to succeed, but it said: {said}")
