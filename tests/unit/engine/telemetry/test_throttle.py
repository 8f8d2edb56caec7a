"""When a device is too hot."""

from hypothesis import given
from hypothesis import strategies as st

from engine.telemetry.throttle import HYSTERESIS_CELSIUS, Throttle


def test_it_closes_above_the_limit_and_opens_five_degrees_below() -> None:
    throttle = Throttle(88.0)
    states = [
        throttle.is_throttled for celsius in (88, 89, 86, 84, 83, 85, 88, 90) if throttle.observe(celsius) or True
    ]
    assert states == [False, True, True, True, False, False, False, True]


def test_it_says_when_it_changes() -> None:
    throttle = Throttle(88.0)
    assert [throttle.observe(celsius) for celsius in (80, 90, 91, 70, 60)] == [False, True, False, True, False]


def test_a_device_without_a_thermometer_is_never_throttled_and_one_that_lost_it_no_longer() -> None:
    throttle = Throttle(88.0)
    throttle.observe(None)
    assert not throttle.is_throttled
    throttle.observe(95.0)
    throttle.observe(None)
    assert not throttle.is_throttled


def test_without_a_limit_no_heat_is_too_much() -> None:
    throttle = Throttle(0.0)
    throttle.observe(300.0)
    assert not throttle.is_throttled


@given(st.lists(st.floats(0, 120)))
def test_between_the_bounds_it_stays_as_it_was_and_outside_it_does_not(temperatures: list[float]) -> None:
    throttle, limit = Throttle(80.0), 80.0
    for celsius in temperatures:
        before = throttle.is_throttled
        throttle.observe(celsius)
        expected = True if celsius > limit else False if celsius <= limit - HYSTERESIS_CELSIUS else before
        assert throttle.is_throttled is expected
