"""What the main loop is watched by and listens to, in one piece."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from core.protocol import DeviceReading
from engine.telemetry.sensor import DeviceMonitor
from engine.telemetry.throttle import Throttle
from engine.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class Instruments:
    """As they come they watch nothing. clock: seconds, monotonic. monitor: None where the device has no sensor."""

    clock: Callable[[], float] = time.monotonic
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0.0))
    throttle: Throttle = field(default_factory=lambda: Throttle(0.0))
    monitor: DeviceMonitor | None = None

    @property
    def reading(self) -> DeviceReading | None:
        return None if self.monitor is None else self.monitor.reading

    def heat_changed(self) -> bool:
        """Whether the throttle has just closed or opened."""
        reading = self.reading
        return self.throttle.observe(None if reading is None else reading.temperature_celsius)
