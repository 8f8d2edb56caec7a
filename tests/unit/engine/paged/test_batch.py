import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.generation.scheduler import Piece
from engine.paged.batch import QUERIES_PER_BLOCK, Span, pack_prompts, prompt_blocks
from engine.paged.rows import RowTable
from engine.paged.storage import PagedStorage
from tests.unit.engine.paged.pages import sequence, whole

CPU = torch.device("cpu")


def test_pieces_of_prompts_lie_side_by_side_and_know_their_cells() -> None:
    # Given a prompt that is continued, and the beginning of another, on pages of four tokens
    storage, rows = PagedStorage(8, CPU, page_size=4), RowTable(2, 4)
    continued = sequence([11, 12, 13, 14, 15, 16], [5, 2])
    continued.num_cached_tokens = 3
    begun = sequence([21, 22, 23, 24], [7])
    # When they are packed
    tables = torch.zeros((3, 4), dtype=torch.int32)
    packed = pack_prompts([whole(continued), Piece(begun, 2)], rows, storage, tables)
    # Then
    assert packed.input_ids.tolist() == [[14, 15, 16, 21, 22]]
    assert packed.position_ids.tolist() == [[3, 4, 5, 0, 1]]
    assert packed.batch.cells.tolist() == [5 * 4 + 3, 2 * 4 + 0, 2 * 4 + 1, 7 * 4, 7 * 4 + 1]
    assert packed.logits_at.tolist() == [2]
    assert packed.batch.spans == [Span(0, 3, rows.row(continued), 3), Span(3, 5, rows.row(begun), 0)]
    assert packed.batch.blocks.tolist() == [[0, 3, rows.row(continued), 3], [3, 2, rows.row(begun), 0]]


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 500)), min_size=1, max_size=5))
def test_blocks_hold_every_query_once_with_its_position_and_the_longest_go_first(
    lengths_and_starts: list[tuple[int, int]],
) -> None:
    # Given
    ends = np.cumsum([length for length, _ in lengths_and_starts]).tolist()
    spans = [
        Span(end - length, end, row, start)
        for row, (end, (length, start)) in enumerate(zip(ends, lengths_and_starts, strict=True))
    ]
    # When
    blocks = prompt_blocks(spans).tolist()
    # Then
    found = sorted(
        (first + i, row, position + i) for first, number, row, position in blocks for i in range(number)
    )  # fmt: skip
    assert found == [(at, s.row, s.start + at - s.begin) for s in spans for at in range(s.begin, s.end)]
    assert max(number for _, number, _, _ in blocks) <= QUERIES_PER_BLOCK
    work = [position + number for _, number, _, position in blocks]
    assert work == sorted(work, reverse=True)
