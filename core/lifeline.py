"""Ties a child process to the one that started it: when the parent is gone, the child ends too; and while it lives, it
can say so through a file, which it touches again and again. Changes of the file are compared, not times, so that a
clock that is set says nothing.

Called first by every entry point that a supervisor starts. Works on Linux through PR_SET_PDEATHSIG; elsewhere the next
`millrace up` finds what was left behind by its environment (`INSTANCE_VARIABLE`).
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PARENT_VARIABLE = "MILLRACE__PARENT_PID"
INSTANCE_VARIABLE = "MILLRACE__INSTANCE"
PULSE_FILE_VARIABLE = "MILLRACE__PULSE_FILE"

_PR_SET_PDEATHSIG = 1


def follow_parent(signal_number: int = signal.SIGTERM) -> None:
    """Have the kernel send `signal_number` to this process when its parent dies. Does nothing when started by hand."""
    parent = os.environ.pop(PARENT_VARIABLE, None)  # our own children have another parent
    if parent is None or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(parent):  # died between fork and prctl
        os.kill(os.getpid(), signal_number)


def pulse_path() -> Path | None:
    """The file that this process should touch; None when nobody watches."""
    path = os.environ.get(PULSE_FILE_VARIABLE)
    return Path(path) if path else None


class PulseWatch:
    """Whether a file was touched since the last look. A file that is not there was not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = 0

    def __call__(self) -> bool:
        try:
            touched = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        changed, self._seen = touched != self._seen, touched
        return changed
