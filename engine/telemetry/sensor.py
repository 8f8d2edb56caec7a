"""Where readings of a device come from, and the thread that takes them. Knows no driver.

A driver may take long to answer, or never do, so nobody but this thread waits for it.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from core.errors import Unavailable
from core.protocol import DeviceReading

logger = logging.getLogger(__name__)

READ_SECONDS = 1.0
STALE_SECONDS = 10.0


class SensorUnavailable(Unavailable):
    """The driver or the device says nothing."""


class Sensor(Protocol):
    def read(self) -> DeviceReading:
        """Raises SensorUnavailable. From one thread only."""


class DeviceMonitor:
    """clock: seconds, monotonic."""

    def __init__(
        self,
        sensor: Sensor,
        interval_seconds: float = READ_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._newest: tuple[DeviceReading, float] | None = None
        self._clock = clock
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

    @property
    def reading(self) -> DeviceReading | None:
        """The newest one; None before the first, while the sensor fails, and where a driver has fallen silent."""
        newest = self._newest
        return None if newest is None or self._clock() - newest[1] > STALE_SECONDS else newest[0]

    def look(self) -> None:
        """One reading. A sensor that fails is reported once, until it has worked again."""
        try:
            self._newest = (self._sensor.read(), self._clock())
            self._is_failing = False
        except Exception as error:  # noqa: BLE001  # a driver may raise anything, and this thread must outlive it
            self._newest = None
            if not self._is_failing:
                logger.warning("%s; the engine goes on without readings of its device", error)
            self._is_failing = True

    def _work(self) -> None:
        while not self._closing.is_set():
            self.look()
            self._closing.wait(self._interval_seconds)
