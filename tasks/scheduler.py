"""Celery's scheduler for beat, kept in memory, with two things that it lacks: a sign of life at every turn, and
patience with a clock that is set back, after which it would send nothing until the old time is reached again."""

import logging
import time
from typing import Any

from celery.beat import Scheduler

from core.lifeline import pulse_path

logger = logging.getLogger(__name__)

TURN_SECONDS = 5.0
STEP_SECONDS = 2.0  # a smaller step of the clock is left to pass


class SteadyScheduler(Scheduler):  # type: ignore[misc]
    max_interval = TURN_SECONDS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._offset_seconds = _clock_offset()
        self._pulse_path = pulse_path()
        super().__init__(*arguments, **named)

    def tick(self, *arguments: Any, **named: Any) -> float:
        """Seconds until the next call."""
        if self._pulse_path is not None:
            self._pulse_path.touch()
        self._follow_clock()
        seconds: float = super().tick(*arguments, **named)
        return seconds

    def _follow_clock(self) -> None:
        """Entries that ran in what is now the future ran just now; the order of the next ones is made anew."""
        offset = _clock_offset()
        step, self._offset_seconds = offset - self._offset_seconds, offset
        if abs(step) < STEP_SECONDS:
            return
        logger.warning("the clock was set by %+.0f s", step, extra={"event": "beat.clock_set"})
        for entry in self.schedule.values():
            entry.last_run_at = min(entry.last_run_at, entry.default_now())
        self._heap = None


def _clock_offset() -> float:
    return time.time() - time.monotonic()
