"""Waiting for something to come true, with a deadline, instead of sleeping for a guessed time."""

import time
from collections.abc import Callable

DEADLINE_SECONDS = 120.0
LOOK_SECONDS = 0.02


def until(holds: Callable[[], object]) -> None:
    """Fails when `holds` says nothing true before the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"it did not come true within {DEADLINE_SECONDS:.0f} s"
        time.sleep(LOOK_SECONDS)
