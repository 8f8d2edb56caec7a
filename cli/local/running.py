"""A whole Millrace for the length of a `with`: what `millrace demo` and end-to-end tests use."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cli.local.up import READY_FD_VARIABLE
from core.errors import Unavailable
from core.lifeline import PARENT_VARIABLE
from core.settings import Settings, settings_environment


@dataclass(frozen=True, slots=True)
class Running:
    """pid: of `millrace up`."""

    url: str
    pid: int


@contextmanager
def running(settings: Settings, with_flower: bool = True) -> Iterator[Running]:
    """Starts `millrace up` as a child that prints where we print, and stops it. Raises Unavailable when it ends early.

    A process of its own, because its supervisor needs the main thread. Not of our terminal's group, so that Ctrl-C
    reaches it only through us.
    """
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "cli.main", "up", *([] if with_flower else ["--no-flower"])],
        env={
            **os.environ,
            **settings_environment(settings),
            READY_FD_VARIABLE: str(writing),
            PARENT_VARIABLE: str(os.getpid()),
        },
        stdin=subprocess.DEVNULL,
        pass_fds=(writing,),
        start_new_session=True,
    )
    os.close(writing)
    try:
        yield Running(_await_ready(reading), child.pid)
    finally:
        _stop(child)


def _await_ready(reading: int) -> str:
    """Ends with the line of a ready child, or with the end of one that died."""
    with os.fdopen(reading) as pipe:
        url = pipe.readline().strip()
    if not url:
        raise Unavailable("Millrace did not start; what it said stands above")
    return url


def _stop(child: "subprocess.Popen[bytes]") -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait()
    except KeyboardInterrupt:  # a second Ctrl-C: at once
        child.send_signal(signal.SIGTERM)
        child.wait()
