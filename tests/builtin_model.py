"""The built-in model for tests that need one that has learned something: trained once, then kept in pytest's cache."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine.builtin

# Generous, so that all steps are done and the model is the same however busy the machine is.
_SECONDS_LIMIT = 200


@pytest.fixture(scope="session")
def builtin_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a fully trained `millrace/tiny`."""
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    parent = tmp_path_factory.mktemp("builtin") if cache is None else cache.mkdir("millrace-builtin")
    directory = parent / _source_digest() / "tiny"
    train_builtin(directory, "--seconds-limit", str(_SECONDS_LIMIT))
    return directory


def train_builtin(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the real command to its end; fails the test with its log unless it ends well."""
    done = subprocess.run(train_command(directory, *options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def train_command(directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "engine.jobs", "train-builtin", "--out", os.fspath(directory), *options]


def _source_digest() -> str:
    """Another recipe, corpus or Python makes another model."""
    sources = sorted(Path(engine.builtin.__file__).parent.glob("*.py"))
    text = sys.version.encode() + b"".join(path.read_bytes() for path in sources)
    return hashlib.sha256(text).hexdigest()[:16]
