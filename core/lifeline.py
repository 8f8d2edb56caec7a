"""Ties a child process to the one that started it: when the parent is gone, the child ends too.

Called first by every entry point that a supervisor starts. Works on Linux through PR_SET_PDEATHSIG; elsewhere the next
`millrace up` finds what was left behind by its environment (`INSTANCE_VARIABLE`).
"""

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "MILLRACE__PARENT_PID"
INSTANCE_VARIABLE = "MILLRACE__INSTANCE"

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
