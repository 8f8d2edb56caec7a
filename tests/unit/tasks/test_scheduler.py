"""Beat's scheduler with a clock that is set."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from core.lifeline import PULSE_FILE_VARIABLE
from tasks import scheduler
from tasks.scheduler import SteadyScheduler

SECONDS = timedelta(seconds=1)


class Clock:
    """What the wall says; monotonic time passes as real."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self.passed = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds * SECONDS
        self.passed += seconds

    def set(self, seconds: float) -> None:
        self.now += seconds * SECONDS

    def offset(self) -> float:
        return self.now.timestamp() - self.passed


class Recording(SteadyScheduler):
    sent: list[str]

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self.sent.append(entry.name)

    @property
    def producer(self) -> None:
        """Nothing is sent."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(scheduler, "_clock_offset", clock.offset)
    return clock


@pytest.fixture
def beat(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Recording]:
    monkeypatch.setenv(PULSE_FILE_VARIABLE, str(tmp_path / "pulse"))
    app = Celery("test", set_as_current=False)
    app.now = lambda: clock.now
    app.conf.beat_schedule = {"often": {"task": "a", "schedule": 3.0}, "seldom": {"task": "b", "schedule": 60.0}}
    beat = Recording(app)
    beat.sent = []
    yield beat
    app.close()


def ticks(beat: Recording, clock: Clock, seconds: int) -> list[str]:
    """What is sent while so many seconds pass."""
    beat.sent.clear()
    for _ in range(seconds):
        clock.advance(1)
        while beat.tick() == 0:
            continue
    return beat.sent


def test_everything_is_sent_in_its_period_and_every_turn_is_a_sign_of_life(
    beat: Recording, clock: Clock, tmp_path: Path
) -> None:
    sent = ticks(beat, clock, 120)
    assert (sent.count("often"), sent.count("seldom")) == (40, 2)
    assert (tmp_path / "pulse").exists()


@pytest.mark.parametrize("step", [-3600, 3600])
def test_a_clock_that_is_set_by_an_hour_delays_nothing(beat: Recording, clock: Clock, step: float) -> None:
    # Given
    ticks(beat, clock, 10)
    # When
    clock.set(step)
    # Then
    sent = ticks(beat, clock, 120)
    assert sent.count("often") in (39, 40, 41)
    assert sent.count("seldom") in (1, 2, 3)
