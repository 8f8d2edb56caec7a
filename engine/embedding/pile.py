"""Inputs that wait to be embedded, and which of them are computed together. Knows no torch and no requests.

A batch is padded to its longest input, so inputs of like length belong together. The oldest input of the highest
priority anchors a batch, and its nearest neighbours in length fill it up: nobody starves, and little is padded.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.runtime import Key

Waiter = tuple[Key, int]  # a request, and the place of the input in it


@dataclass(slots=True, eq=False)
class Input:
    """token_ids: special tokens included. waiters: who wants its embedding."""

    token_ids: tuple[int, ...]
    priority: int
    order: int
    waiters: set[Waiter] = field(default_factory=set)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


class Pile:
    """Identical inputs that wait at the same time are one input with several waiters."""

    def __init__(self) -> None:
        self._inputs: dict[tuple[int, ...], Input] = {}
        self._classes: dict[int, _Class] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._inputs)

    @property
    def best_priority(self) -> int | None:
        """Of the next batch; None where nothing waits."""
        return max(self._classes, default=None)

    def add(self, waiter: Waiter, token_ids: tuple[int, ...], priority: int) -> None:
        known = self._inputs.get(token_ids)
        if known is not None and known.priority >= priority:
            known.waiters.add(waiter)
            return
        self._order += 1
        waiting = Input(token_ids, priority, self._order, {waiter})
        if known is not None:  # it is in a hurry now
            self._forget(known)
            waiting.waiters |= known.waiters
        self._keep(waiting)

    def remove(self, waiter: Waiter, token_ids: tuple[int, ...]) -> None:
        known = self._inputs.get(token_ids)
        if known is not None:
            known.waiters.discard(waiter)
            if not known.waiters:
                self._forget(known)

    def take(self, max_tokens: int, max_inputs: int) -> list[Input]:
        """The next batch: inputs times the longest of them is at most `max_tokens`, but one input always fits."""
        if not self._inputs:
            return []
        batch = self._classes[max(self._classes)].take(max_tokens, max_inputs)
        for waiting in batch:
            self._forget(waiting)
        return batch

    def _keep(self, waiting: Input) -> None:
        self._inputs[waiting.token_ids] = waiting
        self._classes.setdefault(waiting.priority, _Class()).add(waiting)

    def _forget(self, waiting: Input) -> None:
        del self._inputs[waiting.token_ids]
        members = self._classes[waiting.priority]
        members.remove(waiting)
        if not members.by_age:
            del self._classes[waiting.priority]


class _Class:
    """Inputs of one priority, by age and by length."""

    def __init__(self) -> None:
        self.by_age: dict[int, Input] = {}
        self._by_length: list[Input] = []

    def add(self, waiting: Input) -> None:
        self.by_age[waiting.order] = waiting  # the newest comes last
        bisect.insort(self._by_length, waiting, key=_length)

    def remove(self, waiting: Input) -> None:
        del self.by_age[waiting.order]
        del self._by_length[self._place(waiting)]

    def take(self, max_tokens: int, max_inputs: int) -> list[Input]:
        oldest = next(iter(self.by_age.values()))
        batch = [oldest]
        longest = oldest.num_tokens
        for neighbour in self._neighbours(self._place(oldest)):
            longest = max(longest, neighbour.num_tokens)
            if len(batch) == max_inputs or longest * (len(batch) + 1) > max_tokens:
                break
            batch.append(neighbour)
        return batch

    def _neighbours(self, place: int) -> Iterator[Input]:
        """Shorter ones first where they are as near: they pad nobody else."""
        left, right = place - 1, place + 1
        length = self._by_length[place].num_tokens
        while left >= 0 or right < len(self._by_length):
            shorter = self._by_length[left] if left >= 0 else None
            longer = self._by_length[right] if right < len(self._by_length) else None
            if longer is None or (shorter is not None and length - shorter.num_tokens <= longer.num_tokens - length):
                assert shorter is not None
                left -= 1
                yield shorter
            else:
                right += 1
                yield longer

    def _place(self, waiting: Input) -> int:
        return bisect.bisect_left(self._by_length, _length(waiting), key=_length)


def _length(waiting: Input) -> tuple[int, int]:
    return (waiting.num_tokens, waiting.order)
