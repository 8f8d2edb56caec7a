"""The thread that reads a device."""

import threading

import pytest

from core.protocol import DeviceReading
from engine.telemetry.sensor import STALE_SECONDS, DeviceMonitor, SensorUnavailable
from tests.polling import until


class Thermometer:
    """Fails while `reading` is None."""

    def __init__(self, reading: DeviceReading | None) -> None:
        self.reading = reading
        self.num_reads = 0

    def read(self) -> DeviceReading:
        self.num_reads += 1
        if self.reading is None:
            raise SensorUnavailable("the driver is gone")
        return self.reading


def test_a_sensor_that_fails_is_reported_once_and_used_again_when_it_works(caplog: pytest.LogCaptureFixture) -> None:
    # Given a sensor that works, fails twice, works, and fails again
    thermometer = Thermometer(DeviceReading(temperature_celsius=50.0))
    monitor = DeviceMonitor(thermometer)
    seen = []
    for celsius in (50.0, None, None, 60.0, None):
        thermometer.reading = None if celsius is None else DeviceReading(temperature_celsius=celsius)
        monitor.look()
        seen.append(monitor.reading and monitor.reading.temperature_celsius)
    # Then there is no old reading where there is no new one, and a line for each time it broke
    assert seen == [50.0, None, None, 60.0, None]
    assert [record.getMessage() for record in caplog.records] == [
        "the driver is gone; the engine goes on without readings of its device"
    ] * 2


def test_it_reads_again_and_again_until_it_is_closed() -> None:
    thermometer = Thermometer(DeviceReading(power_watts=300.0))
    monitor = DeviceMonitor(thermometer, interval_seconds=0.001)
    monitor.start()
    until(lambda: thermometer.num_reads > 3)
    assert monitor.reading == DeviceReading(power_watts=300.0)
    monitor.close()
    until(lambda: not monitor._thread.is_alive())


def test_a_driver_that_never_answers_keeps_nobody_waiting() -> None:
    # Given a driver that hangs
    release = threading.Event()

    class Stuck:
        def read(self) -> DeviceReading:
            release.wait()
            return DeviceReading()

    monitor = DeviceMonitor(Stuck())
    monitor.start()
    # Then there is simply no reading, and closing does not wait for one
    assert monitor.reading is None
    monitor.close()
    release.set()


def test_a_driver_that_raises_what_nobody_expected_does_not_end_the_thread() -> None:
    # Given
    class Odd:
        def __init__(self) -> None:
            self.num_reads = 0

        def read(self) -> DeviceReading:
            self.num_reads += 1
            if self.num_reads == 2:
                raise ValueError("a field that no driver had before")
            return DeviceReading(temperature_celsius=40.0)

    odd = Odd()
    monitor = DeviceMonitor(odd, interval_seconds=0.001)
    # When
    monitor.start()
    # Then
    until(lambda: odd.num_reads > 3)
    assert monitor.reading == DeviceReading(temperature_celsius=40.0)
    monitor.close()


def test_a_reading_that_has_become_old_counts_for_nothing() -> None:
    # Given
    now = 0.0
    monitor = DeviceMonitor(Thermometer(DeviceReading(temperature_celsius=95.0)), clock=lambda: now)
    monitor.look()
    # When / Then
    now = STALE_SECONDS
    assert monitor.reading is not None
    now = STALE_SECONDS + 0.1
    assert monitor.reading is None
