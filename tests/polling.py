"""Waiting for something to come true, with a deadline, instead of sleeping for a guessed time."""

import time
from collections.abc import Callable

DEADLINE_SECONDS = 120.0
LOOK_SECONDS = 0.02


def until(
    holds: Callable[[], object],
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
    told: Callable[[], str] = lambda: "",
) -> None:
    """Fails when `holds` says nothing true before the deadline. told: what there is to see then."""
    deadline = time.monotonic() + deadline_seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not come true within {deadline_seconds:.0f} s {told()}"
        time.sleep(LOOK_SECONDS)
