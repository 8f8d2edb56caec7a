"""How the KV grid grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv.slots import SlotPool


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 256), (256, 256), (257, 512), (900, 1000), (1000, 1000)])
def test_the_width_doubles_and_ends_at_the_context(num_tokens: int, width: int) -> None:
    assert SlotPool(4, 4_000, 1_000).width(num_tokens) == width


@given(st.integers(1, 64), st.integers(1, 4_096), st.integers(0, 200_000), st.data())
def test_the_grid_holds_what_is_asked_for_and_stays_in_its_budget(
    num_slots: int, context: int, more: int, data: st.DataObject
) -> None:
    # Given a pool, and demands that it says it can hold
    pool = SlotPool(num_slots, context + more, context)
    shape = (1, pool.width(1))
    demands = data.draw(st.lists(st.tuples(st.integers(1, num_slots), st.integers(1, context)), max_size=8))
    for rows, tokens in (demand for demand in demands if pool.can_hold(*demand)):
        # When the grid is shaped for each in turn
        shape = pool.grid_shape(rows, tokens, shape)
        # Then it holds them, and no more memory is taken than was allowed
        assert shape[0] >= rows
        assert shape[1] >= tokens
        assert shape[0] * shape[1] <= pool.budget_tokens
        assert shape[0] <= num_slots


def test_a_grid_that_is_large_enough_is_left_alone() -> None:
    assert SlotPool(8, 8 * 1_024, 1_024).grid_shape(3, 200, (4, 512)) == (4, 512)


def test_the_lowest_free_slot_is_taken_first() -> None:
    # Given a pool with a gap
    pool = SlotPool(4, 4_000, 1_000)
    for _ in range(3):
        pool.allocate()
    pool.release(1)
    # Then the gap is seen, and filled first
    assert pool.next_move() == (2, 1)
    assert pool.allocate() == 1
    assert pool.next_move() is None
