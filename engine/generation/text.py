"""An answer's text as it grows: which part of it is certain, and whether a stop string has ended it. Knows no torch."""

from collections.abc import Sequence

from core.prompts import TextStream


class AnswerText:
    """`text` never holds a stop string; what could still become the beginning of one is held back until it is known.

    num_certain: characters of `text`.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str]) -> None:
        self._stream = stream
        self._stop = stop
        self._longest_stop = max(map(len, stop), default=0)
        self._certain: list[str] = []
        self._held = ""
        self.num_certain = 0
        self.is_stopped = False

    @property
    def text(self) -> str:
        return "".join(self._certain)

    @property
    def num_read(self) -> int:
        """Characters of all tokens so far, but for the last one's that is not whole yet."""
        return self.num_certain + len(self._held)

    def push(self, token_ids: Sequence[int], *, can_stop: bool = True) -> str:
        """Returns the text that has become certain. can_stop: whether a stop string that ends in it ends the answer."""
        return self._take(self._stream.push(token_ids), can_stop=can_stop, is_end=False)

    def finish(self, *, can_stop: bool = True) -> str:
        """Returns what was held back, where no stop string came of it."""
        return self._take(self._stream.finish(), can_stop=can_stop, is_end=True)

    def _take(self, new: str, *, can_stop: bool, is_end: bool) -> str:
        if self.is_stopped:
            return ""
        candidate = self._held + new
        end = self._find_stop(candidate) if can_stop else None
        if end is None:
            end = len(candidate) if is_end else len(candidate) - self._num_held(candidate)
        else:
            self.is_stopped = True
        self._held = candidate[end:]
        self._certain.append(candidate[:end])
        self.num_certain += end
        return candidate[:end]

    def _find_stop(self, candidate: str) -> int | None:
        """Where the first stop string begins that ends in what is new: an earlier one came when none could stop."""
        old = len(self._held)
        found = [
            position for stop in self._stop if (position := candidate.find(stop, max(0, old + 1 - len(stop)))) >= 0
        ]
        return min(found, default=None)

    def _num_held(self, candidate: str) -> int:
        """Length of the longest end of `candidate` with which a stop string begins."""
        for length in range(min(self._longest_stop - 1, len(candidate)), 0, -1):
            if any(stop.startswith(candidate[-length:]) for stop in self._stop):
                return length
        return 0
