"""How far a training has come: a fixed number of steps, and fewer where the clock would run out. Pure.

While the machine is quick enough the clock changes nothing, so the same steps give the same model. On a slow one the
steps that the time still affords are spread over what is left of the schedule, so that the learning rate falls to
nothing by the end, wherever that comes.
"""

from collections import deque
from statistics import median

_NUM_RECENT = 16
_NUM_TRUSTED = 8  # the first steps are slow on every machine: fewer than this many say nothing,
_HASTE_FRACTION = 0.25  # unless so much of the time is gone already


class Schedule:
    """`seconds`: time for all steps together; `min_steps` are done even where it is too short.

    Call `finish_step` after each step, until `is_over`.
    """

    def __init__(self, num_steps: int, min_steps: int, seconds: float) -> None:
        self._num_steps = num_steps
        self._min_steps = min_steps
        self._seconds = seconds
        self._elapsed_seconds = 0.0
        self._recent_seconds: deque[float] = deque(maxlen=_NUM_RECENT)
        self.num_done = 0
        self.num_planned = num_steps
        self.progress_fraction = 0.0

    @property
    def is_over(self) -> bool:
        return self.num_done >= self.num_planned

    def finish_step(self, elapsed_seconds: float) -> None:
        """`elapsed_seconds`: since the beginning of the first step."""
        self._recent_seconds.append(elapsed_seconds - self._elapsed_seconds)
        self._elapsed_seconds = elapsed_seconds
        self.progress_fraction += (1 - self.progress_fraction) / (self.num_planned - self.num_done)
        self.num_done += 1
        num_affordable = self.num_done + self._num_affordable()
        self.num_planned = min(self._num_steps, max(self._min_steps, num_affordable))

    def _num_affordable(self) -> int:
        is_early = self._elapsed_seconds < _HASTE_FRACTION * self._seconds
        left_seconds = max(0.0, self._seconds - self._elapsed_seconds)
        step_seconds = median(self._recent_seconds)
        if (is_early and len(self._recent_seconds) < _NUM_TRUSTED) or step_seconds * self._num_steps <= left_seconds:
            return self._num_steps
        return int(left_seconds / step_seconds)
