from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.protocol import Sampling
from engine.generation.sequence import Sequence
from engine.paged.rows import RowTable
from tests.unit.engine.paged.pages import sequence

NUM_ROWS = 3
MAX_PAGES = 5


class Device(RuleBasedStateMachine):
    """Sequences come, grow, give way, come again and end; a copy of the page tables follows by what is told."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = RowTable(NUM_ROWS, MAX_PAGES)
        self.tables = np.full((NUM_ROWS + 1, MAX_PAGES), -1, np.int64)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.next_page = 0

    def pages(self, number: int) -> list[int]:
        self.next_page += number
        return list(range(self.next_page - number, self.next_page))

    @rule(number=st.integers(1, MAX_PAGES))
    def arrive(self, number: int) -> None:
        if len(self.running) < NUM_ROWS:
            self.running.append(sequence([2], self.pages(number)))

    @rule(data=st.data(), number=st.integers(1, MAX_PAGES))
    def resume(self, data: Any, number: int) -> None:
        if self.waiting and len(self.running) < NUM_ROWS:
            back = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
            back.pages = self.pages(number)
            self.running.append(back)

    @rule(data=st.data())
    def grow(self, data: Any) -> None:
        room = [one for one in self.running if len(one.pages) < MAX_PAGES]
        if room:
            data.draw(st.sampled_from(room)).pages.extend(self.pages(1))

    @rule(data=st.data(), comes_back=st.booleans())
    def leave(self, data: Any, comes_back: bool) -> None:
        if self.running:
            gone = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            gone.pages = []
            if comes_back:
                self.waiting.append(gone)

    @rule()
    def lose_what_was_told(self) -> None:
        self.rows.take_changes()
        self.rows.forget_told()

    @invariant()
    def the_device_knows_the_pages_of_all_that_run(self) -> None:
        rows = [self.rows.row(one) for one in self.running]
        changes = self.rows.take_changes()
        if changes is not None:
            self.tables.reshape(-1)[changes[0]] = changes[1]
        assert len(set(rows)) == len(rows)
        assert self.rows.padding_row not in rows
        for one, row in zip(self.running, rows, strict=True):
            assert self.tables[row, : len(one.pages)].tolist() == one.pages
        assert self.rows.take_changes() is None


Device.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestDevice = Device.TestCase


def test_a_page_that_was_added_is_all_that_is_told() -> None:
    # Given a sequence whose pages the device knows
    rows = RowTable(NUM_ROWS, MAX_PAGES)
    one = sequence([2], [7, 9])
    row = rows.row(one)
    rows.take_changes()
    # When it gets another one
    one.pages.append(4)
    rows.row(one)
    # Then
    changes = rows.take_changes()
    assert changes is not None
    assert changes.tolist() == [[row * MAX_PAGES + 2], [4]]


def test_a_row_knows_how_its_sequence_is_sampled() -> None:
    # Given
    rows = RowTable(NUM_ROWS, MAX_PAGES)
    # When
    plain = rows.row(sequence([2], [0], sampling=Sampling(temperature=0.5), seed=-1))
    general = rows.row(sequence([2], [1], sampling=Sampling(top_p=0.5, num_logprobs=1)))
    # Then
    assert rows.temperatures[plain] == 0.5
    assert rows.seeds[plain] == 2**64 - 1
    assert [rows.is_general[plain], rows.is_general[general]] == [False, True]
    assert rows.take_joined()
    assert not rows.take_joined()


def test_more_sequences_with_pages_than_rows_are_refused() -> None:
    rows = RowTable(1, MAX_PAGES)
    rows.row(sequence([2], [0]))
    with pytest.raises(RuntimeError, match="expected at most 1 sequences with pages"):
        rows.row(sequence([2], [1]))


def test_more_pages_than_a_page_table_holds_are_refused() -> None:
    with pytest.raises(RuntimeError, match="expected at most 5 pages for a sequence, got 6"):
        RowTable(1, MAX_PAGES).row(sequence([2], [0, 1, 2, 3, 4, 5]))
