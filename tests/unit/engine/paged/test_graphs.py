import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.paged.graphs import DecodeReplays, batch_sizes


@given(st.integers(1, 600))
def test_padded_batch_sizes_rise_to_the_number_of_rows(num_rows: int) -> None:
    sizes = batch_sizes(num_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] == num_rows
    assert len(batch_sizes(256)) == 23


@given(st.integers(1, 600), st.data())
def test_a_batch_is_padded_to_the_next_size_and_by_no_more_than_a_quarter(num_rows: int, data: st.DataObject) -> None:
    # Given
    num_tokens = data.draw(st.integers(1, num_rows))
    replays = DecodeReplays(lambda size: torch.zeros(size, 1), num_rows)
    # When
    padded = replays.padded(num_tokens)
    # Then
    assert num_tokens <= padded <= num_rows
    assert padded in batch_sizes(num_rows)
    assert padded - num_tokens <= max(padded / 4, 7)


def test_a_replay_computes_its_own_size() -> None:
    replays = DecodeReplays(lambda size: torch.full((size, 2), float(size)), 5)
    assert replays.logits(4).tolist() == [[4.0, 4.0]] * 4
