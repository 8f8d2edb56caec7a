"""Laws of the page pool, held against a memory in which every cell says which text it belongs to."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.protocol import Sampling
from engine.generation.sequence import PENDING, Sequence
from engine.kv.pages import PagePool

PAGE = 4
CONTEXT = 40


def sequence(tokens: list[int], scope: str = "") -> Sequence:
    return Sequence((b"", "request"), list(tokens), Sampling(), 0, 0, 0, max_answer_tokens=CONTEXT, scope=scope)


def pool(num_slots: int = 4, num_pages: int = 16, *, reuses_prefixes: bool = True) -> PagePool:
    return PagePool(num_slots, num_pages, PAGE, CONTEXT, reuses_prefixes=reuses_prefixes)


def compute(pages: PagePool, *sequences: Sequence) -> None:
    """All but the newest token, as after a step that has prefilled and sampled."""
    for one in sequences:
        one.num_cached_tokens = len(one.token_ids)
        one.token_ids.append(0)
    pages.extend(sequences)


def run(pages: PagePool, tokens: list[int], scope: str = "") -> list[int]:
    """A sequence that comes, computes these tokens, and leaves; its pages."""
    one = sequence(tokens, scope)
    pages.admit(one)
    one.num_cached_tokens = len(tokens)
    taken = one.pages
    pages.release(one)
    return taken


class PagesInUse(RuleBasedStateMachine):
    """Few tokens and short texts, so that prefixes meet by chance."""

    @initialize(num_slots=st.integers(1, 4), num_pages=st.integers(CONTEXT // PAGE, 14), reuses_prefixes=st.booleans())
    def begin(self, num_slots: int, num_pages: int, reuses_prefixes: bool) -> None:
        self.pool = pool(num_slots, num_pages, reuses_prefixes=reuses_prefixes)
        self.reuses_prefixes = reuses_prefixes
        self.running: list[Sequence] = []
        self.cells: dict[int, list[tuple[str, tuple[int, ...]]]] = {}  # page -> per cell its scope and text so far

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=CONTEXT), scope=st.sampled_from(["a", "b"]))
    def arrive(self, tokens: list[int], scope: str) -> None:
        newcomer = sequence(tokens, scope)
        fits_alone = len(self.running) < self.pool.num_slots
        while not self.pool.can_hold(self.running, newcomer):
            if not fits_alone or not self.running:
                assert not fits_alone, "a context fits into an empty pool"
                return
            self.pool.release(self.running.pop())
        self.pool.admit(newcomer)
        self.running.append(newcomer)
        assert newcomer.num_cached_tokens < len(tokens)
        assert self.reuses_prefixes or newcomer.num_cached_tokens == 0
        self.check_cells(newcomer)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def compute_some(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        room = min(len(one.token_ids), len(one.pages) * PAGE)
        for position in range(one.num_cached_tokens, data.draw(st.integers(one.num_cached_tokens, room))):
            self.write(one, position)
            one.num_cached_tokens = position + 1
        if one.num_uncached_tokens == 0 and len(one.token_ids) < CONTEXT:
            one.token_ids.append(data.draw(st.integers(0, 1)))

    @precondition(lambda self: self.running)
    @rule()
    def make_room_for_new_tokens(self) -> None:
        while not self.pool.can_hold(self.running):
            self.pool.release(self.running.pop())
        self.pool.extend(self.running)
        assert all(len(one.pages) * PAGE >= len(one.token_ids) for one in self.running)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.running.remove(one)
        self.pool.release(one)
        assert (one.pages, one.slot, one.num_cached_tokens) == ([], None, 0)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.running.remove(one)
        self.pool.discard(one)
        assert (one.pages, one.slot, one.num_cached_tokens) == ([], None, 0)

    @precondition(lambda self: not self.running)
    @rule()
    def forget(self) -> None:
        self.pool.forget()
        assert len(self.pool._free) == self.pool.num_pages

    def write(self, one: Sequence, position: int) -> None:
        page = one.pages[position // PAGE]
        others = [other for other in self.running if other is not one and page in other.pages]
        assert not others, "nobody writes a page that somebody shares"
        assert page not in self.pool._digests, "nobody writes a page that is known"
        cells = self.cells.setdefault(page, [])
        del cells[position % PAGE :]
        cells.append((one.scope, tuple(one.token_ids[: position + 1])))

    def check_cells(self, one: Sequence) -> None:
        for position in range(one.num_cached_tokens):
            cell = self.cells[one.pages[position // PAGE]][position % PAGE]
            assert cell == (one.scope, tuple(one.token_ids[: position + 1])), "its K/V are those of its own text"

    @invariant()
    def no_page_is_lost_or_doubly_owned(self) -> None:
        held = {page for one in self.running for page in one.pages}
        free, idle = list(self.pool._free), list(self.pool._idle)
        assert sorted([*held, *free, *idle]) == list(range(self.pool.num_pages))
        for page in held:
            assert self.pool._num_users[page] == sum(page in one.pages for one in self.running)
        assert self.pool.num_used_pages == len(held)
        assert set(idle) <= set(self.pool._digests)
        assert {page: digest for digest, page in self.pool._known.items()} == self.pool._digests
        assert set(self.pool._coming.values()) <= set(self.running)

    @invariant()
    def every_cached_token_is_its_own(self) -> None:
        for one in self.running:
            assert len(set(one.pages)) == len(one.pages)
            self.check_cells(one)
        assert len({one.slot for one in self.running}) == len(self.running)


PagesInUse.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPagesInUse = PagesInUse.TestCase


def test_a_known_prefix_is_shared_and_the_last_token_is_left_to_compute() -> None:
    # Given a prompt of two full pages that somebody has computed
    pages = pool()
    first = run(pages, list(range(8)))
    # When the same prompt, and a longer one, come
    same, longer = sequence(list(range(8))), sequence([*range(8), 9])
    pages.admit(same)
    pages.admit(longer)
    # Then both share what leaves them a token to compute
    assert (same.num_cached_tokens, longer.num_cached_tokens) == (4, 8)
    assert same.pages[:1] == longer.pages[:1] == first[:1]
    assert longer.pages[:2] == first[:2]
    assert same.pages[1] not in first
    assert (pages.num_prefix_hit_tokens_total, pages.num_prefix_lookup_tokens_total) == (12, 8 + 8 + 9)


def test_a_running_sequence_shares_what_it_has_computed() -> None:
    # Given a sequence that still runs
    pages = pool()
    running = sequence(list(range(9)))
    pages.admit(running)
    compute(pages, running)
    # When another begins with the same tokens
    other = sequence([*range(8), 50, 51])
    pages.admit(other)
    # Then it shares two pages, which stay when the first leaves
    assert other.pages[:2] == running.pages[:2]
    pages.release(running)
    third = sequence([*range(8), 60])
    pages.admit(third)
    assert third.pages[:2] == other.pages[:2]


def test_an_answer_is_a_known_prefix_of_the_next_turn() -> None:
    # Given a conversation's first turn: 6 prompt tokens and an answer whose last token was never computed
    pages = pool()
    turn = sequence(list(range(6)))
    pages.admit(turn)
    for token in (10, 11, 12):
        turn.num_cached_tokens = len(turn.token_ids)
        turn.token_ids.append(token)
        pages.extend([turn])
    pages.release(turn)
    # When the next turn contains it
    following = sequence([0, 1, 2, 3, 4, 5, 10, 11, 12, 70, 71])
    pages.admit(following)
    # Then the two pages that were full are spared
    assert following.num_cached_tokens == 8


def test_scopes_never_share() -> None:
    pages = pool()
    run(pages, list(range(9)), scope="one")
    other = sequence(list(range(9)), scope="another")
    pages.admit(other)
    assert other.num_cached_tokens == 0


def test_the_same_page_behind_another_beginning_is_not_taken() -> None:
    pages = pool()
    run(pages, [1, 1, 1, 1, 2, 2, 2, 2, 3])
    other = sequence([5, 5, 5, 5, 2, 2, 2, 2, 3])
    pages.admit(other)
    assert other.num_cached_tokens == 0


def test_the_prefix_unused_for_longest_gives_way_first_and_its_end_before_its_beginning() -> None:
    # Given ten pages: two prefixes of three, the older one used again since, and four free ones
    pages = pool(num_pages=10)
    run(pages, [1] * 12)
    run(pages, [2] * 12)
    run(pages, [1] * 12)
    # When five pages are needed
    big = sequence([3] * 20)
    assert pages.can_hold([], big)
    pages.admit(big)
    # Then the younger one has lost its end
    assert [len(pages._hits(sequence([token] * 13))) for token in (1, 2, 3)] == [3, 2, 0]


def test_known_pages_are_room_but_not_twice() -> None:
    # Given four pages, all of them known and unused, and a context as long
    pages = PagePool(4, 4, PAGE, 16)
    run(pages, list(range(16)))
    # Then a newcomer that shares three needs only its own beside them
    newcomer = sequence([*range(12), 50])
    assert pages.can_hold([], newcomer)
    pages.admit(newcomer)
    assert pages.can_hold([newcomer])
    # And nobody else finds room, not even for a single token
    assert not pages.can_hold([newcomer], sequence([7]))
    # Except for one that shares what is there already and needs no page more
    assert not pages.can_hold([newcomer], sequence([*range(12), 51]))


def test_a_copy_computed_at_the_same_time_is_free_when_its_owner_leaves() -> None:
    # Given two sequences that were admitted together and computed the same page
    pages = pool()
    one, two = sequence(list(range(5))), sequence(list(range(5)))
    pages.admit(one)
    pages.admit(two)
    compute(pages, one, two)
    assert one.pages[0] != two.pages[0]
    # When both leave
    pages.release(two)
    pages.release(one)
    # Then one of the copies is known and the other is free
    assert (len(pages._idle), len(pages._free)) == (1, 15)


def test_spoilt_pages_are_not_known_though_others_share_them() -> None:
    # Given two sequences that share a page
    pages = pool()
    run(pages, list(range(8)))
    bad, good = sequence([*range(8), 1]), sequence([*range(8), 2])
    pages.admit(bad)
    pages.admit(good)
    shared = good.pages[:2]
    # When one of them fails
    pages.discard(bad)
    # Then the other keeps them, and nobody else gets them, now or later
    assert good.pages[:2] == shared
    compute(pages, good)
    pages.release(good)
    third = sequence([*range(8), 3])
    pages.admit(third)
    assert third.num_cached_tokens == 0


def test_a_token_that_is_not_read_yet_is_never_part_of_a_known_page() -> None:
    # Given a sequence whose eighth token is pending
    pages = pool()
    one = sequence(list(range(7)))
    pages.admit(one)
    one.num_cached_tokens = 7
    one.token_ids.append(PENDING)
    pages.extend([one])
    # When it gives way and asks to come back
    pages.release(one)
    pages.admit(one)
    # Then only the page before that token's is known
    assert one.num_cached_tokens == 4


def test_a_preempted_sequence_finds_its_pages_again_which_counts_as_no_hit() -> None:
    # Given a sequence that gave way
    pages = pool()
    one = sequence(list(range(9)))
    pages.admit(one)
    one.was_admitted = True
    compute(pages, one)
    pages.release(one)
    # When it comes back
    pages.admit(one)
    # Then it has its pages again, and the counters tell of first starts alone
    assert one.num_cached_tokens == 8
    assert (pages.num_prefix_hit_tokens_total, pages.num_prefix_lookup_tokens_total) == (0, 9)


def test_a_prefix_that_somebody_computes_is_coming_until_it_is_known() -> None:
    # Given a sequence whose prompt is being computed in pieces
    pages = pool()
    first, second = sequence(list(range(12))), sequence([*range(8), 50])
    pages.admit(first)
    # Then its pages are coming for whoever needs them next, page by page
    assert pages.is_prefix_coming(second)
    first.num_cached_tokens = 6
    pages.extend([first])
    assert pages.is_prefix_coming(second)
    first.num_cached_tokens = 10
    pages.extend([first])
    assert not pages.is_prefix_coming(second)
    assert pages.is_prefix_coming(sequence(list(range(13))))


@pytest.mark.parametrize(
    "other",
    [
        sequence([9, *range(8)]),
        sequence(list(range(9)), scope="another"),
        sequence(list(range(4))),
        Sequence((b"", "online"), list(range(9)), Sampling(), 10, 0, 0, CONTEXT),
    ],
    ids=["another beginning", "another scope", "nothing to share", "in more of a hurry"],
)
def test_nobody_waits_for_what_is_not_for_it(other: Sequence) -> None:
    pages = pool()
    pages.admit(sequence(list(range(12))))
    assert not pages.is_prefix_coming(other)


def test_nobody_waits_for_a_sequence_that_has_left() -> None:
    pages = pool()
    first, second = sequence(list(range(12))), sequence(list(range(9)))
    pages.admit(first)
    pages.release(first)
    assert not pages.is_prefix_coming(second)


def test_without_reuse_nothing_is_known() -> None:
    pages = pool(reuses_prefixes=False)
    run(pages, list(range(9)))
    other = sequence(list(range(9)))
    pages.admit(other)
    assert other.num_cached_tokens == 0


def test_a_context_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="expected room for a context of 41 tokens, got 10 pages of 4"):
        PagePool(4, 10, PAGE, 41)
