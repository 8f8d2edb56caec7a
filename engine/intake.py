"""Requests of a model that nobody has looked at yet: while it loads, and while steps leave no time to tokenize them."""

import heapq
import itertools

from engine.runtime import Arrival, Key


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

    def pop(self) -> Arrival:
        """Raises IndexError where nothing waits."""
        while True:
            arrival = heapq.heappop(self._heap)[2]
            if self._waiting.get(arrival.key) is arrival:  # else it was removed meanwhile
                del self._waiting[arrival.key]
                return arrival

    def remove(self, key: Key) -> bool:
        return self._waiting.pop(key, None) is not None
