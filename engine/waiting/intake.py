"""Requests of a model that nobody has looked at yet: while it loads, and while steps leave no time to tokenize them."""

import heapq
import itertools

from engine.runtime import Arrival, Key

_SPARE = 64  # removed requests that may stay in the heap


class Intake:
    """Gives the highest priority first, then the earliest."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Arrival]] = []
        self._waiting: dict[Key, Arrival] = {}
        self._counter = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, arrival: Arrival) -> None:
        self._waiting[arrival.key] = arrival
        heapq.heappush(self._heap, (-arrival.request.priority, next(self._counter), arrival))

    @property
    def best_priority(self) -> int | None:
        """Of what `pop` would give; None where nothing waits."""
        self._drop_removed()
        return -self._heap[0][0] if self._heap else None

    def pop(self) -> Arrival:
        """Raises IndexError where nothing waits."""
        self._drop_removed()
        arrival = heapq.heappop(self._heap)[2]
        del self._waiting[arrival.key]
        return arrival

    def remove(self, key: Key) -> bool:
        is_here = self._waiting.pop(key, None) is not None
        if len(self._heap) > 2 * len(self._waiting) + _SPARE:
            self._heap = [entry for entry in self._heap if self._waiting.get(entry[2].key) is entry[2]]
            heapq.heapify(self._heap)
        return is_here

    def _drop_removed(self) -> None:
        while self._heap and self._waiting.get(self._heap[0][2].key) is not self._heap[0][2]:
            heapq.heappop(self._heap)
