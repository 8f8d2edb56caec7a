"""How the KV grid grows, and what it leaves of the budget to known prefixes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.protocol import Sampling
from engine.generation.sequence import Sequence
from engine.kv.pool import RowOrders
from engine.kv.prefix import BLOCK_TOKENS
from engine.kv.slots import SlotPool


def sequence(order: int, num_tokens: int, scope: str = "") -> Sequence:
    return Sequence((b"", str(order)), [order] * num_tokens, Sampling(), 0, order, 0, 1, scope=scope)


def run(pool: SlotPool, *sequences: Sequence) -> RowOrders:
    """Admit and compute them."""
    for one in sequences:
        pool.admit(one)
        one.num_cached_tokens = len(one.token_ids)
    return pool.take_orders()


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 256), (256, 256), (257, 512), (900, 1000), (1000, 1000)])
def test_the_width_doubles_and_ends_at_the_context(num_tokens: int, width: int) -> None:
    assert SlotPool(4, 4_000, 1_000).width(num_tokens) == width


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 4_096), st.integers(0, 200_000), st.data())
def test_the_grid_holds_what_is_admitted_and_stays_in_its_budget(
    num_slots: int, context: int, more: int, data: st.DataObject
) -> None:
    # Given a pool, and sequences that come and go
    pool = SlotPool(num_slots, context + more, context)
    running: list[Sequence] = []
    lengths = data.draw(st.lists(st.integers(1, context) | st.integers(1, min(context, 300)), max_size=40))
    for order, length in enumerate(lengths):
        newcomer = sequence(order, length)
        # When each is admitted as soon as it fits
        while not pool.can_hold(running, newcomer):
            pool.release(running.pop(data.draw(st.integers(0, len(running) - 1))))
        running.append(newcomer)
        orders = run(pool, newcomer)
        # Then there is a cell for every token, and no more memory is taken than was allowed
        assert {one.slot for one in running} == set(range(len(running)))
        assert orders.shape[0] >= len(running)
        assert orders.shape[1] >= max(len(one.token_ids) for one in running)
        assert orders.shape[0] <= num_slots
        assert orders.shape[0] * orders.shape[1] + orders.num_blocks * BLOCK_TOKENS <= pool.budget_tokens


def test_a_grid_that_is_large_enough_is_left_alone() -> None:
    # Given a grid of two rows and 512 columns
    pool = SlotPool(8, 8 * 1_024, 1_024)
    first, second = sequence(0, 400), sequence(1, 10)
    assert run(pool, first, second).shape == (2, 512)
    # When less would do
    pool.release(first)
    pool.extend([second])
    # Then it stays as it is
    assert pool.take_orders().shape == (2, 512)


def test_the_lowest_free_slot_is_taken_first_and_a_gap_is_closed_by_the_last() -> None:
    # Given three rows of which the middle one is left
    pool = SlotPool(4, 4_000, 1_000)
    first, second, third = (sequence(order, 5) for order in range(3))
    run(pool, first, second, third)
    pool.release(second)
    # When nobody comes, the last row moves there
    orders = pool.take_orders()
    assert [(move.source, move.target, move.num_tokens) for move in orders.moves] == [(2, 1, 5)]
    assert (first.slot, third.slot) == (0, 1)
    # And where somebody comes, that is its place
    pool.release(first)
    fourth = sequence(3, 5)
    assert run(pool, fourth).moves == []
    assert (fourth.slot, third.slot) == (0, 1)


def test_known_prefixes_give_way_as_the_grid_grows() -> None:
    # Given a budget of four rows of 256, and a finished sequence of three blocks in the store
    pool = SlotPool(4, 1_024, 512)
    known = sequence(0, 100)
    run(pool, known)
    pool.release(known)
    assert pool.num_stored_tokens == 96
    assert [copy.index for copy in pool.take_orders().saves] == [0, 1, 2]
    # When two rows of 512 are needed
    orders = run(pool, sequence(1, 300), sequence(2, 300))
    # Then nothing is left of it
    assert (orders.shape, orders.num_blocks, pool.num_stored_tokens) == ((2, 512), 0, 0)


def test_what_is_about_to_be_loaded_does_not_give_way_to_the_next_one_to_come() -> None:
    # Given a sequence that is about to load three blocks, in a budget that two rows of 512 fill
    pool = SlotPool(4, 1_024, 512)
    known, follower, large = sequence(0, 100), sequence(0, 110), sequence(1, 300)
    run(pool, known)
    pool.release(known)
    pool.take_orders()
    pool.admit(follower)
    # Then the second row has to wait for the next step
    assert not pool.can_hold([follower], large)
    assert [(copy.row, copy.index) for copy in pool.take_orders().loads] == [(0, 0), (0, 1), (0, 2)]
    assert pool.can_hold([follower], large)


def test_a_sequence_that_leaves_before_its_prefix_was_loaded_leaves_the_rest_alone() -> None:
    # Given a known prefix, and two sequences that are about to load it
    pool = SlotPool(4, 4_096, 512)
    known, first, second = sequence(0, 100), sequence(0, 110), sequence(0, 120)
    run(pool, known)
    pool.release(known)
    pool.take_orders()
    pool.admit(first)
    pool.admit(second)
    # When the first one goes
    pool.release(first)
    # Then the second loads it, in the first row now
    orders = pool.take_orders()
    assert ([(copy.row, copy.index) for copy in orders.loads], orders.moves) == ([(0, 0), (0, 1), (0, 2)], [])
    assert pool.num_stored_tokens == 96


def test_without_reuse_nothing_is_stored() -> None:
    # Given a pool that reuses nothing
    pool = SlotPool(4, 4_096, 512, reuses_prefixes=False)
    first, second = sequence(0, 100), sequence(0, 100)
    run(pool, first)
    pool.release(first)
    # When the same prompt comes again
    pool.admit(second)
    orders = pool.take_orders()
    # Then it is computed again
    assert (second.num_cached_tokens, orders.num_blocks, orders.saves, orders.loads) == (0, 0, [], [])


def test_after_all_memory_was_lost_nothing_is_known_and_everything_works() -> None:
    # Given a stored prefix and a running sequence
    pool = SlotPool(4, 4_096, 512)
    known, running = sequence(0, 100), sequence(1, 100)
    run(pool, known, running)
    pool.release(known)
    # When all K/V are gone
    pool.forget()
    pool.release(running)
    # Then neither is known, and the pool works on
    for order in range(2):
        newcomer = sequence(order, 100)
        pool.admit(newcomer)
        assert newcomer.num_cached_tokens == 0
    assert pool.take_orders().saves == []


def test_after_a_burst_the_room_belongs_to_known_prefixes_again() -> None:
    # Given a burst that made the grid as large as the budget, of which nobody is left
    pool = SlotPool(8, 4_096, 2_048)
    burst = [sequence(order, 1_500 if order == 0 else 100) for order in range(2)]
    run(pool, *burst)
    for one in burst:
        pool.release(one)
    pool.take_orders()
    # When a conversation comes twice
    first, second = sequence(7, 600), sequence(7, 640)
    run(pool, first)
    pool.release(first)
    pool.admit(second)
    # Then its second turn finds the first
    assert second.num_cached_tokens == 576


def test_what_is_about_to_be_loaded_stays_while_younger_prefixes_give_way() -> None:
    # Given a sequence that is about to load what is older than all that bulk work has just left
    pool = SlotPool(8, 2_304, 1_024)
    known = sequence(0, 130)
    run(pool, known)
    pool.release(known)
    bulk = [sequence(order, 200) for order in (1, 2, 3)]
    run(pool, *bulk)
    again = sequence(0, 139)
    pool.admit(again)
    for one in bulk:
        pool.release(one)
    # When a long one makes the store shrink
    pool.admit(sequence(9, 600))
    # Then
    assert [copy.index for copy in pool.take_orders().loads] == [0, 1, 2, 3]
