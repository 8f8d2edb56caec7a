"""Where a job is cut into chunks: so many rows at most, and so many answer tokens. Pure.

Chunks of about the same cost let tenants take turns fairly, whatever the sizes of their rows. What a crash loses does
not depend on it: answers are written as they come.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cut:
    """A run of consecutive rows, and the answer tokens that they ask for at most."""

    first_request: int
    num_requests: int
    cost_tokens: int


@dataclass(slots=True)
class Cutter:
    """max_rows, max_tokens: of one chunk, at least 1 each; a row that asks for more is a chunk of its own."""

    max_rows: int
    max_tokens: int
    _cuts: list[Cut] = field(default_factory=list)
    _first: int = 0
    _num_rows: int = 0
    _cost_tokens: int = 0

    def add(self, cost_tokens: int) -> None:
        is_full = self._num_rows >= self.max_rows or self._cost_tokens + cost_tokens > self.max_tokens
        if is_full and self._num_rows:
            self._cut()
        self._num_rows += 1
        self._cost_tokens += cost_tokens

    def finish(self) -> list[Cut]:
        """All chunks, in order; together they hold every row once."""
        if self._num_rows:
            self._cut()
        return self._cuts

    def _cut(self) -> None:
        self._cuts.append(Cut(self._first, self._num_rows, self._cost_tokens))
        self._first += self._num_rows
        self._num_rows = self._cost_tokens = 0
