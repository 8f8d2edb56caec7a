"""The watchdog, in processes of their own, which it ends."""

import signal
import subprocess
import sys

import pytest

DEADLINE_SECONDS = 60.0
SCENE = """
import ctypes, faulthandler, logging, sys, threading
from engine.watchdog import Watchdog

def stuck_without_gil():
    threading.Event().wait()

def stuck_with_gil():
    ctypes.PyDLL(None).pause()

logging.basicConfig(format="%(levelname)s %(message)s")
watchdog = Watchdog(float(sys.argv[1]))
watchdog.start()
watchdog.begin()
{act}
"""


def run(act: str, limit_seconds: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", SCENE.format(act=act), str(limit_seconds)],
        capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS,
    )  # fmt: skip


def test_a_loop_that_is_stuck_ends_by_sigalrm_with_its_stack_and_a_last_line() -> None:
    # When it waits in code that lets others run
    ended = run("stuck_without_gil()", 0.2)
    # Then the log says where, and last of all what happens
    assert ended.returncode == -signal.SIGALRM
    assert "in stuck_without_gil" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("CRITICAL one step has taken 0.")
    assert "more than --max-step-seconds 0.2 allows" in ended.stderr


def test_a_loop_that_never_lets_go_of_the_gil_ends_by_sigalrm_with_its_stack() -> None:
    ended = run("stuck_with_gil()", 0.2)
    assert ended.returncode == -signal.SIGALRM
    assert "in stuck_with_gil" in ended.stderr


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    # Given a turn of the loop that is short, but for a stop in its middle that is longer than the limit
    act = """
import os, subprocess
subprocess.Popen([sys.executable, "-c", f"import os, signal, time; os.kill({os.getpid()}, signal.SIGSTOP); "
    f"time.sleep(1.5); os.kill({os.getpid()}, signal.SIGCONT)"])
threading.Event().wait(2.0)
watchdog.rest()
print("done")
"""
    # When / Then
    ended = run(act, 1.2)
    assert (ended.returncode, ended.stdout) == (0, "done\n")


@pytest.mark.parametrize(
    ("act", "limit_seconds"),
    [
        pytest.param("watchdog.rest()\nthreading.Event().wait(2)", 0.2, id="a loop at rest"),
        pytest.param("threading.Event().wait(2)", 0.0, id="no limit"),
        pytest.param(
            "for _ in range(60): watchdog.begin(); threading.Event().wait(0.05)", 1.0, id="many turns within the limit"
        ),
    ],
)
def test_others_go_on(act: str, limit_seconds: float) -> None:
    ended = run(act + "\nprint('done')", limit_seconds)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
