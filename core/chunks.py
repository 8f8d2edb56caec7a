"""Where a job is cut into chunks: so many rows at most, so many answer tokens, and so many bytes. Pure.

Chunks of about the same cost let tenants take turns fairly, whatever the sizes of their rows. What a crash loses does
not depend on it: answers are written as they come.
"""

from dataclasses import dataclass, field

MAX_CHUNK_BYTES = 16 * 1024 * 1024  # a worker holds the bodies of its chunks in memory


@dataclass(frozen=True, slots=True)
class Cut:
    """A run of consecutive rows, and the answer tokens that they ask for at most."""

    first_request: int
    num_requests: int
    cost_tokens: int


@dataclass(slots=True)
class Cutter:
    """max_rows, max_tokens, max_bytes: of one chunk, at least 1 each; a row beyond them is a chunk of its own."""

    max_rows: int
    max_tokens: int
    max_bytes: int = MAX_CHUNK_BYTES
    _cuts: list[Cut] = field(default_factory=list)
    _first: int = 0
    _num_rows: int = 0
    _cost_tokens: int = 0
    _num_bytes: int = 0

    def add(self, cost_tokens: int, num_bytes: int = 0) -> None:
        if self._num_rows and not self._has_room(cost_tokens, num_bytes):
            self._cut()
        self._num_rows += 1
        self._cost_tokens += cost_tokens
        self._num_bytes += num_bytes

    def finish(self) -> list[Cut]:
        """All chunks, in order; together they hold every row once."""
        if self._num_rows:
            self._cut()
        return self._cuts

    def _has_room(self, cost_tokens: int, num_bytes: int) -> bool:
        return (
            self._num_rows < self.max_rows
            and self._cost_tokens + cost_tokens <= self.max_tokens
            and self._num_bytes + num_bytes <= self.max_bytes
        )

    def _cut(self) -> None:
        self._cuts.append(Cut(self._first, self._num_rows, self._cost_tokens))
        self._first += self._num_rows
        self._num_rows = self._cost_tokens = self._num_bytes = 0
