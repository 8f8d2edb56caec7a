import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.lifeline import PARENT_VARIABLE, PulseWatch, follow_parent

TIMEOUT_SECONDS = 20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")

FOLLOWER = """
import signal
from core.lifeline import follow_parent
follow_parent()
print("ready", flush=True)
signal.pause()
"""
# Starts the follower, hands on its first line and its process id, and is gone.
PARENT = f"""
import os, subprocess, sys
environment = {{**os.environ, {PARENT_VARIABLE!r}: str(os.getpid())}}
child = subprocess.Popen([sys.executable, "-c", {FOLLOWER!r}], env=environment, stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), child.pid, flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_a_process_that_was_started_by_hand_follows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    follow_parent()


def test_the_variable_does_not_reach_the_children_of_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    program = f"import os; from core.lifeline import *; follow_parent(); print({PARENT_VARIABLE!r} in os.environ)"
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getpid()))

    # When
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    # Then
    assert done.stdout.strip() == "False"


@linux
def test_a_child_ends_with_its_parent() -> None:
    # Given: a parent and a child that follows it, whose standard output ends when both are gone
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None
    assert parent.stdout is not None
    word, child = parent.stdout.readline().split()
    assert word == "ready"
    descriptor = os.pidfd_open(int(child))

    # When
    parent.stdin.close()
    assert parent.wait(TIMEOUT_SECONDS) == 0

    # Then
    with os.fdopen(descriptor):
        assert is_over(descriptor)
    parent.stdout.close()


def is_over(descriptor: int) -> bool:
    """Whether the process of a pid descriptor ends in time."""
    readable, _, _ = select.select([descriptor], [], [], TIMEOUT_SECONDS)
    return bool(readable)


@linux
def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    # Given: the id of a process that is not its parent
    environment = {**os.environ, PARENT_VARIABLE: "1" if os.getpid() != 1 else "2"}

    # When
    done = subprocess.run(
        [sys.executable, "-c", FOLLOWER], env=environment, capture_output=True, check=False, timeout=TIMEOUT_SECONDS
    )

    # Then
    assert done.returncode == -signal.SIGTERM


def test_a_file_that_is_touched_lives_whatever_the_clock_says(tmp_path: Path) -> None:
    # Given
    path = tmp_path / "pulse"
    watch = PulseWatch(path)
    assert not watch()
    # When it is touched, and again after the clock was set back by an hour
    path.touch()
    assert watch()
    assert not watch()
    os.utime(path, (0, path.stat().st_mtime - 3600))
    # Then
    assert watch()
    assert not watch()
