"""The schedule of a training: all steps where time allows, and a whole schedule in fewer steps where not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.builtin.schedule import Schedule


def run(schedule: Schedule, step_seconds: list[float]) -> list[float]:
    """The progress before each step; the last duration repeats."""
    fractions, elapsed = [], 0.0
    while not schedule.is_over:
        fractions.append(schedule.progress_fraction)
        elapsed += step_seconds[min(schedule.num_done, len(step_seconds) - 1)]
        schedule.finish_step(elapsed)
    return fractions


@given(st.lists(st.floats(0.0, 0.09), min_size=1, max_size=50))
def test_on_a_quick_machine_the_clock_changes_nothing(step_seconds: list[float]) -> None:
    fractions = run(Schedule(num_steps=50, min_steps=1, seconds=5.0), step_seconds)
    assert fractions == run(Schedule(num_steps=50, min_steps=1, seconds=1e9), [0.0])
    assert fractions == pytest.approx([step / 50 for step in range(50)])


def test_one_slow_step_at_the_beginning_changes_nothing() -> None:
    assert len(run(Schedule(num_steps=400, min_steps=1, seconds=40.0), [3.0, 0.05])) == 400


@pytest.mark.parametrize("step_seconds", [[0.1], [0.5], [0.01, 0.01, 0.2], [3.0]])
def test_on_a_slow_machine_fewer_steps_go_through_the_whole_schedule(step_seconds: list[float]) -> None:
    schedule = Schedule(num_steps=1000, min_steps=1, seconds=30.0)
    fractions = run(schedule, step_seconds)
    assert len(fractions) < 1000
    assert len(fractions) * step_seconds[-1] < 33.0
    assert fractions == sorted(fractions)
    assert schedule.progress_fraction == pytest.approx(1.0)
    assert 1.0 - fractions[-1] < 0.2


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=60), st.integers(1, 60), st.integers(1, 9))
def test_progress_only_grows_and_every_training_ends(step_seconds: list[float], num_steps: int, min_steps: int) -> None:
    schedule = Schedule(num_steps, min_steps, seconds=10.0)
    fractions = [*run(schedule, step_seconds), schedule.progress_fraction]
    assert fractions == sorted(fractions)
    assert min(min_steps, num_steps) <= schedule.num_done <= num_steps
    assert 0.0 <= fractions[0] <= fractions[-1] <= 1.0 + 1e-9
