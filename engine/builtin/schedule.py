"""How far a training has come: a fixed number of steps, and fewer where the clock would run out. Pure.

While the machine is quick enough the clock changes nothing, so the same steps give the same model. On a slow one the
steps that the time still affords are spread over what is left of the schedule: the learning rate always falls to
nothing, whenever the end comes.
"""

_SMOOTHING = 0.9


class Schedule:
    """`seconds`: time for all steps together. Call `finish_step` after each one."""

    def __init__(self, num_steps: int, seconds: float) -> None:
        self._num_steps = num_steps
        self._seconds = seconds
        self._elapsed_seconds = 0.0
        self._step_seconds = 0.0
        self.num_done = 0
        self.num_planned = num_steps
        self.progress_fraction = 0.0

    @property
    def is_over(self) -> bool:
        return self.num_done >= self.num_planned

    def finish_step(self, elapsed_seconds: float) -> None:
        """`elapsed_seconds`: since the beginning of the first step."""
        latest = elapsed_seconds - self._elapsed_seconds
        mean = latest if self.num_done == 0 else _SMOOTHING * self._step_seconds + (1 - _SMOOTHING) * latest
        self._step_seconds, self._elapsed_seconds = mean, elapsed_seconds
        num_left = self.num_planned - self.num_done
        self.progress_fraction += (1 - self.progress_fraction) / num_left
        self.num_done += 1
        self.num_planned = min(self._num_steps, self.num_done + self._num_affordable())

    def _num_affordable(self) -> int:
        left_seconds = max(0.0, self._seconds - self._elapsed_seconds)
        return int(left_seconds / self._step_seconds) if self._step_seconds > 0 else self._num_steps
