"""Requests that run alone, because one of them is suspected of taking the process down: when the next may begin, and
what may begin beside it meanwhile. Knows no clock and no model: it is told the time and what runs.

While one waits, no bulk work begins, or the engine would never come to rest. Requests that somebody waits for go on
beginning for `PATIENCE_SECONDS`, then they wait as well. Once nothing runs, the request is announced to its client, and
begins `NOTICE_SECONDS` later, by when the announcement has left the process. What cannot begin, since its model is not
loaded, holds nobody back.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from core.protocol import ONLINE_PRIORITY
from engine.runtime import Arrival, Key

PATIENCE_SECONDS = 30.0
NOTICE_SECONDS = 0.05
ANYTHING = -math.inf
NOTHING = math.inf


@dataclass(frozen=True, slots=True)
class Announced:
    """begin_seconds: the reading of the clock at which it may begin."""

    arrival: Arrival
    begin_seconds: float


class Quarantine:
    """One at a time: the highest priority first, then the earliest."""

    def __init__(self, can_begin: Callable[[Arrival], bool]) -> None:
        """can_begin: whether its model could take it now."""
        self._can_begin = can_begin
        self._waiting: dict[Key, Arrival] = {}  # in the order of their arrival
        self._held_since = math.inf
        self._announced: Announced | None = None
        self._running: Key | None = None

    def __len__(self) -> int:
        """Those that have not begun."""
        return len(self._waiting)

    def push(self, arrival: Arrival) -> None:
        self._waiting[arrival.key] = arrival

    def remove(self, key: Key) -> None:
        """A request that has ended, of whichever kind."""
        if self._running == key:
            self._running = None
        if self._announced is not None and self._announced.arrival.key == key:
            self._announced = None
        self._waiting.pop(key, None)

    def lowest_priority(self, now: float) -> float:
        """Of what else may begin."""
        if self._running is not None or self._announced is not None:
            return NOTHING
        if self._head() is None:
            self._held_since = math.inf
            return ANYTHING
        self._held_since = min(self._held_since, now)
        return ONLINE_PRIORITY if now - self._held_since < PATIENCE_SECONDS else NOTHING

    def announce(self, now: float) -> Arrival | None:
        """The next, where none has been announced; the caller tells its client. Asked only when nothing runs."""
        head = None if self._announced is not None else self._head()
        if head is not None:
            self._announced = Announced(head, now + NOTICE_SECONDS)
        return head

    def pop(self, now: float) -> Arrival | None:
        """The announced one, when its time has come. From then on it runs, until it is removed."""
        announced = self._announced
        if announced is None or now < announced.begin_seconds:
            return None
        self._announced, self._held_since = None, math.inf
        self._running = announced.arrival.key
        del self._waiting[self._running]
        return announced.arrival

    def wait_seconds(self, now: float, *, is_idle: bool) -> float | None:
        """Until there is something to do here; None is not before something else happens. is_idle: nothing runs."""
        if self._announced is not None:
            return max(0.0, self._announced.begin_seconds - now)
        return 0.0 if is_idle and self._head() is not None else None

    def _head(self) -> Arrival | None:
        able = (arrival for arrival in self._waiting.values() if self._can_begin(arrival))
        return max(able, key=lambda arrival: arrival.request.priority, default=None)
