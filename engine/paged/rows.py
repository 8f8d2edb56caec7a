"""A row per running sequence: its page table, what its sampling needs, and the place of its newest token on the device.

A row is kept while its sequence has pages, so that a decode step has only to tell the device what changed: pages that
were added, in the main. Holds no tensor: `take_changes` says what the device's copy of the page tables lacks.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.generation.sequence import Sequence
from engine.sampling.sampler import is_plain
from engine.sampling.uniform import seed_array

Integers = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Known:
    """What the device knows, or will with the next changes: the pages of the row's sequence."""

    sequence: Sequence | None = None
    pages: list[int] = field(default_factory=list)


class RowTable:
    """Rows 0 to `num_rows` - 1; the row behind the last is for padding, belongs to nobody and lies in the spare page.

    is_general: rows whose sampling needs more than a temperature, top_k, top_p and min_p.
    """

    def __init__(self, num_rows: int, max_pages: int) -> None:
        self.num_rows = num_rows
        self.max_pages = max_pages
        self.seeds = np.zeros(num_rows + 1, np.uint64)
        self.temperatures = np.zeros(num_rows + 1, np.float32)
        self.is_general = np.zeros(num_rows + 1, np.bool_)
        self._rows: dict[Sequence, int] = {}
        self._known = [_Known() for _ in range(num_rows)]
        self._free = list(reversed(range(num_rows)))
        self._has_joined = False
        self._places: list[int] = []
        self._pages: list[int] = []

    @property
    def padding_row(self) -> int:
        return self.num_rows

    def row(self, sequence: Sequence) -> int:
        """Its row, with the pages that it has now. Raises RuntimeError where there are fewer rows than sequences."""
        row = self._rows.get(sequence)
        if row is None:
            row = self._join(sequence)
        known = self._known[row]
        if known.pages != sequence.pages:
            self._tell(row, known, sequence.pages)
        return row

    def take_changes(self) -> Integers | None:
        """(2, changes): places in the flattened page tables, and the pages to write there. None: no changes."""
        if not self._places:
            return None
        changes = np.array([self._places, self._pages], np.int64)
        self._places, self._pages = [], []
        return changes

    def take_joined(self) -> bool:
        """Whether a sequence has come to a row since the last time, so that `temperatures` changed."""
        has_joined, self._has_joined = self._has_joined, False
        return has_joined

    def forget_told(self) -> None:
        """The device may lack what was taken; tell it all again."""
        self._places, self._pages = [], []
        self._has_joined = True
        for known in self._known:
            known.pages = []

    def _tell(self, row: int, known: _Known, pages: list[int]) -> None:
        if len(pages) > self.max_pages:
            raise RuntimeError(f"expected at most {self.max_pages} pages for a sequence, got {len(pages)}")
        start = len(known.pages) if pages[: len(known.pages)] == known.pages else 0
        self._places += range(row * self.max_pages + start, row * self.max_pages + len(pages))
        self._pages += pages[start:]
        known.pages = list(pages)

    def _join(self, sequence: Sequence) -> int:
        if not self._free:
            self._sweep()
        if not self._free:
            raise RuntimeError(f"expected at most {self.num_rows} sequences with pages, got one more")
        row = self._free.pop()
        self._rows[sequence] = row
        self._known[row] = _Known(sequence)
        self._has_joined = True
        self.seeds[row] = seed_array([sequence.seed])[0]
        self.temperatures[row] = sequence.sampling.temperature
        self.is_general[row] = not is_plain(sequence)
        return row

    def _sweep(self) -> None:
        """Take back the rows of sequences that ended or gave way; in time these are all that are without pages."""
        for row, known in enumerate(self._known):
            if known.sequence is not None and not known.sequence.pages:
                del self._rows[known.sequence]
                self._known[row] = _Known()
                self._free.append(row)
