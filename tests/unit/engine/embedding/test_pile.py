import random

from hypothesis import given
from hypothesis import strategies as st

from engine.embedding.loading import MAX_BATCH_TOKENS_CPU
from engine.embedding.pile import Pile, Waiter

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=40)


def waiter(name: object) -> Waiter:
    return ((b"client", str(name)), 0)


def tokens(length: int, number: int) -> tuple[int, ...]:
    return (number,) * length


def filled(lengths: list[int], priorities: list[int] | None = None) -> Pile:
    pile = Pile()
    for number, length in enumerate(lengths):
        pile.add(waiter(number), tokens(length, number), priorities[number] if priorities else 0)
    return pile


@given(LENGTHS, st.integers(1, 60), st.integers(1, 8))
def test_every_input_is_taken_once_within_the_budget(lengths: list[int], max_tokens: int, max_inputs: int) -> None:
    # Given
    pile = filled(lengths)

    # When
    batches = []
    while len(pile):
        batches.append(pile.take(max_tokens, max_inputs))

    # Then
    taken = [int(key[1]) for batch in batches for waiting in batch for key, _ in waiting.waiters]
    assert sorted(taken) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_inputs
        assert len(batch) == 1 or len(batch) * max(waiting.num_tokens for waiting in batch) <= max_tokens


@given(LENGTHS)
def test_the_oldest_input_is_in_the_next_batch(lengths: list[int]) -> None:
    # Given
    pile = filled(lengths)
    expected = 0

    # Then
    left = set(range(len(lengths)))
    while len(pile):
        expected = min(left)
        batch = {int(key[1]) for waiting in pile.take(20, 4) for key, _ in waiting.waiters}
        assert expected in batch
        left -= batch


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2)), min_size=1, max_size=30))
def test_a_higher_priority_is_empty_before_a_lower_one_begins(inputs: list[tuple[int, int]]) -> None:
    # Given
    pile = filled([length for length, _ in inputs], [priority for _, priority in inputs])

    # When
    seen = []
    while len(pile):
        seen.append({waiting.priority for waiting in pile.take(24, 4)})

    # Then
    assert all(len(priorities) == 1 for priorities in seen)
    order = [next(iter(priorities)) for priorities in seen]
    assert order == sorted(order, reverse=True)


def test_a_batch_holds_neighbours_in_length() -> None:
    # Given one input of 50 tokens, the oldest, and many short ones beside two of its like
    pile = filled([50, 2, 2, 49, 2, 51, 2])

    # When
    batch = pile.take(max_tokens=160, max_inputs=8)

    # Then
    assert sorted(waiting.num_tokens for waiting in batch) == [49, 50, 51]


def test_identical_inputs_are_one_and_keep_the_higher_priority() -> None:
    # Given
    pile = Pile()
    pile.add(waiter("slow"), (1, 2), 0)
    pile.add(waiter("other"), (3, 4), 0)
    pile.add(waiter("fast"), (1, 2), 9)

    # When
    first, second = pile.take(2, 8), pile.take(2, 8)

    # Then
    assert [waiting.waiters for waiting in first] == [{waiter("slow"), waiter("fast")}]
    assert [waiting.waiters for waiting in second] == [{waiter("other")}]


def test_an_input_that_nobody_waits_for_any_more_is_gone() -> None:
    # Given
    pile = Pile()
    pile.add(waiter("a"), (1, 2), 0)
    pile.add(waiter("b"), (1, 2), 0)

    # When / Then
    pile.remove(waiter("a"), (1, 2))
    assert len(pile) == 1
    pile.remove(waiter("b"), (1, 2))
    assert len(pile) == 0
    assert pile.take(8, 8) == []


def test_little_is_padded_while_64_of_mixed_lengths_wait_at_a_time() -> None:
    # Given inputs of 6 to 62 tokens, 64 of which wait at any time
    chance = random.Random(0)
    lengths = [chance.randint(6, 62) for _ in range(512)]
    pile = filled(lengths[:64])
    num_places = 0
    # When they are computed, and for each another one comes
    number = 64
    while len(pile):
        batch = pile.take(MAX_BATCH_TOKENS_CPU, 256)
        num_places += len(batch) * max(waiting.num_tokens for waiting in batch)
        for length in lengths[number : number + len(batch)]:
            pile.add(waiter(number), tokens(length, number), 0)
            number += 1
    # Then seven of eight places hold a token
    assert sum(lengths) / num_places > 0.875
