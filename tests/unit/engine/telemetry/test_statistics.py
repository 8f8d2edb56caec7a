"""Figures of all models in one, and what is added to them when somebody asks."""

import pytest

from core.protocol import DeviceReading, EngineStats, Hello, Phase
from engine.generation.meter import StepTotals
from engine.runtime import Gauges
from engine.telemetry.instruments import Instruments
from engine.telemetry.sensor import DeviceMonitor
from engine.telemetry.statistics import Rate, Statistics, greeting
from engine.telemetry.throttle import Throttle

LARGE = Gauges(
    num_running=3, num_waiting=2, num_steps_total=10, prompt_tokens_total=100, completion_tokens_total=50,
    step_seconds_total=1.5, kv_used_fraction=0.5, num_preemptions_total=1, prefix_hit_tokens_total=64,
    prefix_lookup_tokens_total=100, steps=StepTotals(Phase(1, 0.5), Phase(8, 0.5), Phase(1, 0.5), [0, 10]),
)  # fmt: skip
SMALL = Gauges(num_running=1, kv_used_fraction=0.75, steps=StepTotals(decode=Phase(2, 0.25), rows_histogram=[2]))


def test_counters_add_up_and_the_fullest_model_speaks_for_kv() -> None:
    stats = Statistics().collect([LARGE, SMALL], 8, 5, 0.0)
    assert (stats.num_running, stats.num_waiting, stats.num_slots) == (4, 7, 8)
    assert (stats.kv_used_fraction, stats.num_preemptions_total) == (0.75, 1)
    assert (stats.prefix_hit_tokens_total, stats.prefix_lookup_tokens_total) == (64, 100)
    assert (stats.prefill, stats.decode, stats.mixed) == (Phase(1, 0.5), Phase(10, 0.75), Phase(1, 0.5))
    assert stats.rows_histogram == [2, 10]


def test_an_engine_without_models_has_figures_too() -> None:
    assert Statistics().collect([], 0, 0, 0.0) == EngineStats()


def test_a_rate_is_that_of_the_last_seconds() -> None:
    # Given a counter that grows by 100 a second for ten seconds
    rate = Rate()
    steady = [rate.observe(10 * tenth, tenth / 10) for tenth in range(101)]
    # Then that is what it says, and it fades to nothing in five seconds of rest
    assert steady[0] == 0.0
    assert steady[-1] == pytest.approx(100, rel=0.05)
    assert 0 < rate.observe(1000, 12.0) < 80
    assert [rate.observe(1000, second) for second in (14.0, 16.0, 18.0)][-1] == 0.0


def test_a_counter_that_falls_because_its_model_was_unloaded_begins_anew() -> None:
    rate = Rate()
    rate.observe(1000, 0.0)
    assert rate.observe(10, 1.0) == 0.0
    assert rate.observe(20, 2.0) == 10.0


def test_a_greeting_knows_what_holds_now_though_the_loop_is_stuck() -> None:
    # Given a snapshot of a loop whose turn has begun, on a hot device
    class Hot:
        def read(self) -> DeviceReading:
            return DeviceReading(temperature_celsius=95.0)

    monitor = DeviceMonitor(Hot())
    monitor.look()
    instruments = Instruments(throttle=Throttle(90.0), monitor=monitor)
    instruments.heat_changed()
    instruments.watchdog.begin()
    snapshot = Hello("boot", "cuda", 4, [], EngineStats(num_running=7))
    # When somebody asks
    stats = greeting(snapshot, instruments).stats
    # Then the answer is of this moment
    assert (stats.num_running, stats.is_throttled) == (7, True)
    assert stats.device == DeviceReading(temperature_celsius=95.0)
    assert stats.step_age_seconds > 0
    assert stats.process_memory_bytes > 1_000_000
    # And no turn is no age
    instruments.watchdog.rest()
    assert greeting(snapshot, instruments).stats.step_age_seconds == 0.0


def test_after_a_rest_the_rate_is_that_of_now() -> None:
    # Given 100 tokens, and an hour in which nobody counted
    rate = Rate()
    rate.observe(0, 0.0)
    rate.observe(100, 1.0)
    # When 200 tokens a second come
    rates = [rate.observe(100 + 50 * quarter, 3_600 + 0.25 * quarter) for quarter in range(1, 5)]
    # Then
    assert rates == pytest.approx([200.0] * 4)
