"""Laws of the tree of known prefixes, over any order of events, beside a plain model of what was used when."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.protocol import Sampling
from engine.generation.sequence import PENDING, Sequence
from engine.kv.prefix import BLOCK_TOKENS, Block, PrefixIndex, StoreOrders

Prefix = tuple[str | int, ...]  # the scope, and per block a number that its tokens repeat
LETTERS = st.lists(st.integers(0, 1), min_size=0, max_size=5)
SCOPES = st.sampled_from(["", "a", "b"])
MOST_BLOCKS = 8


def make_sequence(scope: str, letters: list[int], num_more: int = 1, order: int = 0, priority: int = 0) -> Sequence:
    tokens = [letter for letter in letters for _ in range(BLOCK_TOKENS)] + [9] * num_more
    return Sequence((b"", str(order)), tokens, Sampling(), priority, order, 0, 100, scope=scope)


def prefix_of(block: Block) -> Prefix:
    letters: list[str | int] = []
    while block.parent is not None:
        letters.append(block.key if isinstance(block.key, str) else block.key[0])
        block = block.parent
    return tuple(reversed(letters))


def chain(sequence: Sequence, num_tokens: int) -> list[Prefix]:
    letters = [sequence.token_ids[place * BLOCK_TOKENS] for place in range(num_tokens // BLOCK_TOKENS)]
    return [(sequence.scope, *letters[: index + 1]) for index in range(len(letters))]


def carry_out(orders: StoreOrders, places: list[Prefix | None]) -> list[Prefix | None]:
    """What lies in the places of the store afterwards."""
    for source, target in orders.moves:
        assert target >= 0
        places[target] = places[source]
    places = [*places, *[None] * (orders.size - len(places))][: orders.size]
    for block, _ in orders.saves:
        places[block.place] = prefix_of(block)
    return places


class Machine(RuleBasedStateMachine):
    """used_at: when a prefix was last used, (event, minus its length): the larger, the later it gives way.

    places: whose K/V lie in every place of the store, as far as orders were carried out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.index.resize(MOST_BLOCKS)
        self.capacity = MOST_BLOCKS
        self.running: list[Sequence] = []
        self.used_at: dict[Prefix, tuple[int, int]] = {}
        self.num_events = 0
        self.places: list[Prefix | None] = []

    @property
    def stored(self) -> set[Prefix]:
        return {prefix_of(block) for block in self.index._stored}

    def computed_by(self, sequence: Sequence) -> list[Prefix]:
        """But for what was discarded with another one."""
        dead = [block.index for block in self.index._chains[sequence] if block.is_dead]
        return chain(sequence, sequence.num_cached_tokens)[: min(dead, default=None)]

    def use(self, prefixes: list[Prefix]) -> None:
        self.num_events += 1
        self.used_at |= {prefix: (self.num_events, -len(prefix)) for prefix in prefixes}

    @precondition(lambda self: len(self.running) < 4)
    @rule(scope=SCOPES, letters=LETTERS, num_more=st.integers(0, 3), priority=st.integers(0, 1))
    def admit(self, scope: str, letters: list[int], num_more: int, priority: int) -> None:
        # Given a new sequence and what is known before it
        sequence = make_sequence(scope, letters, num_more + (not letters), self.num_events, priority)
        sequence.slot = next(slot for slot in range(4) if slot not in {other.slot for other in self.running})
        computed = [p for other in self.running for p in self.computed_by(other)]
        known = [p for p in chain(sequence, len(sequence.token_ids) - 1) if p in {*self.stored, *computed}]
        before = self.stored
        # When it joins
        found = self.index.join(sequence)
        # Then it takes over all that is known, as far as the store has room, and is left a token to compute
        assert [prefix_of(block) for block in found] == known[: len(found)]
        assert len(found) == len(known) or self.index.num_stored == self.capacity
        assert before.intersection(known) <= self.stored
        assert len(found) * BLOCK_TOKENS < len(sequence.token_ids)
        assert all(block.place >= 0 for block in found)
        self.check_eviction(before, known)
        self.use(known)
        sequence.num_cached_tokens = len(found) * BLOCK_TOKENS
        self.running.append(sequence)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.running))
        sequence.num_cached_tokens += data.draw(st.integers(0, len(sequence.token_ids) - sequence.num_cached_tokens))
        if sequence.num_uncached_tokens == 0 and data.draw(st.booleans()):
            sequence.token_ids += [data.draw(st.integers(0, 2))] * BLOCK_TOKENS

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.running))
        before, computed = self.stored, self.computed_by(sequence)
        # When a sequence leaves
        self.index.leave(sequence)
        self.running.remove(sequence)
        # Then a beginning of what it has computed is stored, all of it unless the store is full
        kept = [prefix in self.stored for prefix in computed]
        assert kept == sorted(kept, reverse=True)
        assert all(kept) or self.index.num_stored == self.capacity
        assert before.intersection(computed) <= self.stored
        self.check_eviction(before, computed)
        self.use(computed)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.running))
        proven = {prefix_of(block) for block in self.index._chains[sequence] if block.is_proven and not block.is_dead}
        self.index.discard(sequence)
        self.running.remove(sequence)
        assert not (self.stored - proven).intersection(chain(sequence, len(sequence.token_ids)))

    @rule(capacity=st.integers(0, MOST_BLOCKS))
    def resize(self, capacity: int) -> None:
        before = self.stored
        self.capacity = max(capacity, self.index.num_pinned)
        self.index.resize(self.capacity)
        self.check_eviction(before, [])

    @rule()
    def take_orders(self) -> None:
        # When the orders are carried out as a store carries them out
        self.places = carry_out(self.index.take_orders(), self.places)
        # Then every stored block lies in its place, and nothing has to stay any more
        assert all(self.places[block.place] == prefix_of(block) for block in self.index._stored)
        assert self.index.num_pinned == 0

    def check_eviction(self, before: set[Prefix], used: list[Prefix]) -> None:
        """Whatever stays and was not used just now was used later than whatever went."""
        gone, stayed = before - self.stored, (before & self.stored) - set(used)
        pinned = {prefix_of(block) for block in self.index._pinned}
        if gone and stayed - pinned:
            assert max(self.used_at[prefix] for prefix in gone) < min(self.used_at[p] for p in stayed - pinned)

    @invariant()
    def places_are_whole(self) -> None:
        places = [block.place for block in self.index._stored]
        assert sorted([*places, *self.index._free]) == list(range(self.index._size))
        assert len(places) <= self.capacity
        assert self.index._size <= self.capacity

    @invariant()
    def beginnings_are_kept_and_nothing_else_lingers(self) -> None:
        reached, blocks = set[Prefix](), list(self.index._trunk.children.values())
        for root in blocks:
            assert root.children
        blocks = [block for root in blocks for block in root.children.values()]
        while blocks:
            block = blocks.pop()
            assert block.place >= 0 or block.holders, "what nobody has is forgotten"
            assert not block.is_dead
            assert all(child.place < 0 for child in block.children.values()) or block.place >= 0
            assert [s for s in self.running if block in self.index._chains[s]] == sorted(
                block.holders, key=self.running.index
            )
            reached.add(prefix_of(block))
            blocks += block.children.values()
        assert self.stored <= reached


TestPrefixIndex = Machine.TestCase
TestPrefixIndex.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def joined(index: PrefixIndex, sequence: Sequence, slot: int = 0) -> Sequence:
    sequence.slot = slot
    sequence.num_cached_tokens = len(index.join(sequence)) * BLOCK_TOKENS
    return sequence


def computed(sequence: Sequence) -> Sequence:
    sequence.num_cached_tokens = len(sequence.token_ids)
    return sequence


def index_of(capacity: int) -> PrefixIndex:
    index = PrefixIndex()
    index.resize(capacity)
    return index


def test_a_sequence_is_always_left_a_token_to_compute() -> None:
    # Given a stored prompt of two whole blocks
    index = index_of(8)
    index.leave(computed(joined(index, make_sequence("", [0, 1], num_more=0))))
    # Then the same prompt takes over one, and both where it goes on
    assert joined(index, make_sequence("", [0, 1], num_more=0)).num_cached_tokens == 32
    assert joined(index, make_sequence("", [0, 1], num_more=1), 1).num_cached_tokens == 64


def test_scopes_never_mix() -> None:
    # Given a stored prefix of one tenant
    index = index_of(8)
    index.leave(computed(joined(index, make_sequence("one", [1, 2]))))
    # When the same prompt comes of another, and of the same one
    other, same = joined(index, make_sequence("other", [1, 2])), joined(index, make_sequence("one", [1, 2]), 1)
    # Then only the latter takes it over
    assert (other.num_cached_tokens, same.num_cached_tokens) == (0, 64)


def test_the_end_of_a_prefix_gives_way_before_its_beginning() -> None:
    # Given room for three blocks, all taken by one sequence
    index = index_of(3)
    index.leave(computed(joined(index, make_sequence("", [0, 1, 2]))))
    # When another one of two blocks ends
    index.leave(computed(joined(index, make_sequence("", [2, 2]))))
    # Then the first block of the old one is left
    assert joined(index, make_sequence("", [0, 1, 2])).num_cached_tokens == 32
    assert joined(index, make_sequence("", [2, 2]), 1).num_cached_tokens == 64


@pytest.mark.parametrize("sizes", [(2,), (3, 1), (5, 3, 2), (4, 6, 3), (1, 6, 2)])
@pytest.mark.parametrize("is_saved_before", [True, False])
def test_what_is_kept_of_a_store_that_shrinks_moves_to_its_front(sizes: tuple[int, ...], is_saved_before: bool) -> None:
    # Given three sequences of two blocks each, saved already or about to be
    index, places = index_of(6), list[Prefix | None]()
    for letter in range(3):
        index.leave(computed(joined(index, make_sequence("", [letter, letter]))))
    if is_saved_before:
        places = carry_out(index.take_orders(), places)
    # When the store changes its size, several times before the next step
    for size in sizes:
        index.resize(size)
    places = carry_out(index.take_orders(), places)
    # Then the blocks of the youngest ones are there, as many as ever fitted, and nothing else moved
    kept: list[Prefix] = [("", 2), ("", 2, 2), ("", 1), ("", 1, 1), ("", 0)]
    assert {prefix_of(block) for block in index._stored} == set(kept[: min(sizes)])
    assert all(places[block.place] == prefix_of(block) for block in index._stored)
    assert len(places) <= sizes[-1]


def test_a_prefix_is_coming_while_a_holder_computes_it() -> None:
    # Given a sequence that has computed one of its three blocks
    index = index_of(8)
    leader = joined(index, make_sequence("", [0, 1, 2]))
    leader.num_cached_tokens = 40
    # Then those who need the second wait for it, of no higher priority, and those who do not, do not
    assert index.is_coming(make_sequence("", [0, 1]))
    assert not index.is_coming(make_sequence("", [0, 1], priority=1))
    assert not index.is_coming(make_sequence("", [0, 2]))
    assert not index.is_coming(make_sequence("a", [0, 1]))
    # And nobody any more once it is there, or its holder gone
    leader.num_cached_tokens = 64
    assert not index.is_coming(make_sequence("", [0, 1]))
    assert index.is_coming(make_sequence("", [0, 1, 2]))
    index.leave(leader)
    assert not index.is_coming(make_sequence("", [0, 1, 2]))


def test_nobody_waits_for_what_could_not_be_stored() -> None:
    index = index_of(0)
    joined(index, make_sequence("", [0, 1]))
    assert not index.is_coming(make_sequence("", [0, 1]))


def test_tokens_that_were_not_read_are_not_known() -> None:
    # Given a sequence whose answer fills its second block with a token that is still on the device
    index = index_of(8)
    sequence = joined(index, make_sequence("", [0], num_more=31))
    sequence.token_ids += [PENDING, PENDING]
    sequence.num_cached_tokens = 64
    # When it leaves
    index.leave(sequence)
    # Then its first block alone is known
    assert index.num_stored == 1


def test_a_discarded_sequence_takes_along_what_nobody_else_has_proven() -> None:
    # Given a block that an answered sequence has proven, and two sequences that begin with it
    index = index_of(8)
    good = computed(joined(index, make_sequence("", [0])))
    good.num_prompt_tokens = 32
    index.leave(good)
    bad = computed(joined(index, make_sequence("", [0, 1])))
    other = computed(joined(index, make_sequence("", [0, 1, 2]), 1))
    # When one of them is discarded and the other leaves
    index.discard(bad)
    index.leave(other)
    # Then that block alone is known
    assert joined(index, make_sequence("", [0, 1, 2])).num_cached_tokens == 32
