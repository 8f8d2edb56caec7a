"""Decides whether a device is too hot to begin bulk work. Pure: it is told temperatures.

The limit is meant to lie below the one at which the device slows itself down, when everybody on it suffers, those who
wait too.
"""

HYSTERESIS_CELSIUS = 5.0


class Throttle:
    """limit_celsius: 0 never throttles."""

    def __init__(self, limit_celsius: float) -> None:
        self._limit_celsius = limit_celsius
        self.is_throttled = False

    def observe(self, temperature_celsius: float | None) -> bool:
        """Whether that changed anything. Above the limit it throttles, until the device is `HYSTERESIS_CELSIUS` below.
        A device that does not tell its temperature is not throttled."""
        was_throttled = self.is_throttled
        self.is_throttled = self._is_too_hot(temperature_celsius)
        return self.is_throttled is not was_throttled

    def _is_too_hot(self, celsius: float | None) -> bool:
        if not self._limit_celsius or celsius is None:
            return False
        if self.is_throttled:
            return celsius > self._limit_celsius - HYSTERESIS_CELSIUS
        return celsius > self._limit_celsius
