"""Where readings of a device come from, and the thread that takes them. Knows no driver.

A driver may take long to answer, or never do, so nobody but this thread waits for it.
"""

import logging
import threading
from typing import Protocol

from core.errors import MillraceError, Unavailable
from core.protocol import DeviceReading

logger = logging.getLogger(__name__)

READ_SECONDS = 1.0


class SensorUnavailable(Unavailable):
    """The driver or the device says nothing."""


class Sensor(Protocol):
    def read(self) -> DeviceReading:
        """Raises SensorUnavailable. From one thread only."""


class DeviceMonitor:
    """`reading` is the newest one; None before the first and while the sensor fails."""

    def __init__(self, sensor: Sensor, interval_seconds: float = READ_SECONDS) -> None:
        self.reading: DeviceReading | None = None
        self._sensor = sensor
        self._interval_seconds = interval_seconds
        self._is_failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sensor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Does not wait for a driver that is silent."""
        self._closing.set()

    def look(self) -> None:
        """One reading. A sensor that fails is reported once, until it has worked again."""
        try:
            self.reading = self._sensor.read()
            self._is_failing = False
        except MillraceError as error:
            self.reading = None
            if not self._is_failing:
                logger.warning("%s; the engine goes on without readings of its device", error.message)
            self._is_failing = True

    def _work(self) -> None:
        while not self._closing.is_set():
            self.look()
            self._closing.wait(self._interval_seconds)
