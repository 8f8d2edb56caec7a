from hypothesis import given
from hypothesis import strategies as st

from core.chunks import Cut, Cutter

COSTS = st.lists(st.integers(min_value=1, max_value=50), max_size=60)


def cuts_of(costs: list[int], max_rows: int, max_tokens: int) -> list[Cut]:
    cutter = Cutter(max_rows, max_tokens)
    for cost in costs:
        cutter.add(cost)
    return cutter.finish()


@given(costs=COSTS, max_rows=st.integers(1, 10), max_tokens=st.integers(1, 100))
def test_every_row_is_in_one_chunk_and_no_chunk_is_too_large(costs: list[int], max_rows: int, max_tokens: int) -> None:
    # When
    cuts = cuts_of(costs, max_rows, max_tokens)
    # Then
    rows = [row for cut in cuts for row in range(cut.first_request, cut.first_request + cut.num_requests)]
    assert rows == list(range(len(costs)))
    for cut in cuts:
        assert 1 <= cut.num_requests <= max_rows
        assert cut.cost_tokens == sum(costs[cut.first_request : cut.first_request + cut.num_requests])
        assert cut.cost_tokens <= max_tokens or cut.num_requests == 1


def test_rows_that_ask_for_much_make_short_chunks() -> None:
    # When / Then
    assert [cut.num_requests for cut in cuts_of([10] * 4 + [1] * 8, 5, 20)] == [2, 2, 5, 3]


def test_rows_with_large_bodies_make_short_chunks() -> None:
    # Given
    cutter = Cutter(max_rows=10, max_tokens=100, max_bytes=50)
    # When
    for num_bytes in (20, 20, 20, 80, 1):
        cutter.add(1, num_bytes)
    # Then
    assert [cut.num_requests for cut in cutter.finish()] == [2, 1, 1, 1]
