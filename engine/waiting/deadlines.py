"""When requests must have ended. Knows no clock: it is told the time."""

import heapq
import itertools

from engine.runtime import Key

_SPARE_ENTRIES = 64


class Deadlines:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._current: dict[Key, int] = {}  # the number of its entry; others of that key are void
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._current)

    def add(self, key: Key, deadline_seconds: float) -> None:
        number = next(self._numbers)
        self._current[key] = number
        heapq.heappush(self._heap, (deadline_seconds, number, key))

    def remove(self, key: Key) -> None:
        """Nothing happens where it has none."""
        if self._current.pop(key, None) is not None and len(self._heap) > 2 * len(self._current) + _SPARE_ENTRIES:
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)

    def wait_seconds(self, now: float) -> float | None:
        """Until the next one; None where there is none."""
        self._drop_void()
        return max(0.0, self._heap[0][0] - now) if self._heap else None

    def take_due(self, now: float) -> list[Key]:
        """Those that have passed, the earliest first; each is given once."""
        due: list[Key] = []
        self._drop_void()
        while self._heap and self._heap[0][0] <= now:
            key = heapq.heappop(self._heap)[2]
            del self._current[key]
            due.append(key)
            self._drop_void()
        return due

    def _drop_void(self) -> None:
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)

    def _is_current(self, entry: tuple[float, int, Key]) -> bool:
        return self._current.get(entry[2]) == entry[1]
