"""K/V that go from rows to the store and back are the same."""

import mmap

import pytest
import torch
from torch import Tensor

from engine.kv.grid import KvGrid
from engine.kv.pool import BlockCopy
from engine.kv.prefix import BLOCK_TOKENS
from engine.kv.store import BlockStore

SHAPE = (3, 100)  # whose columns are no whole number of blocks


@pytest.fixture
def grid() -> KvGrid:
    """Two layers whose keys and values differ in shape."""
    grid = KvGrid(SHAPE)
    generator = torch.Generator().manual_seed(0)
    cells = torch.arange(SHAPE[0] * SHAPE[1])
    for layer in range(2):
        key = torch.randn(1, 2, len(cells), 8, generator=generator)
        value = torch.randn(1, 2, len(cells), 4, generator=generator)
        grid.write(layer, cells, key, value)
    return grid


def block(tensor: Tensor, row: int, index: int) -> Tensor:
    return tensor[row, index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]


def test_blocks_come_back_as_they_were_saved(grid: KvGrid) -> None:
    # Given blocks of two rows, some of which follow each other, in the store
    store = BlockStore(grid)
    store.resize(8)
    saved = [BlockCopy(2, 0, 0), BlockCopy(3, 0, 1), BlockCopy(5, 0, 2), BlockCopy(4, 1, 2), BlockCopy(0, 2, 1)]
    store.save(saved)
    before = [tensor.clone() for tensor in grid.tensors()]
    # When they are loaded elsewhere
    store.load([BlockCopy(4, 0, 0), BlockCopy(2, 1, 0), BlockCopy(3, 1, 1), BlockCopy(5, 1, 2), BlockCopy(0, 2, 2)])
    # Then they are there, in every layer, and nothing else has changed
    for old, new in zip(before, grid.tensors(), strict=True):
        expected = old.clone()
        block(expected, 0, 0)[:] = block(old, 1, 2)
        expected[1, : 3 * BLOCK_TOKENS] = old[0, : 3 * BLOCK_TOKENS]
        block(expected, 2, 2)[:] = block(old, 2, 1)
        assert torch.equal(new, expected)


def test_what_is_moved_survives_a_smaller_store_and_a_larger_one(grid: KvGrid) -> None:
    # Given two blocks in a store of eight
    store = BlockStore(grid)
    store.resize(8)
    store.save([BlockCopy(1, 0, 0), BlockCopy(7, 1, 1)])
    before = [tensor.clone() for tensor in grid.tensors()]
    # When the last one is moved forward, the store shrinks to three and grows again
    store.move([(7, 2)])
    store.resize(3)
    num_bytes = store.num_bytes
    store.resize(20)
    # Then both are there still, and the memory was given back
    assert num_bytes == 3 * BLOCK_TOKENS * grid.bytes_per_token
    store.load([BlockCopy(1, 2, 0), BlockCopy(2, 2, 1)])
    for old, new in zip(before, grid.tensors(), strict=True):
        assert torch.equal(block(new, 2, 0), block(old, 0, 0))
        assert torch.equal(block(new, 2, 1), block(old, 1, 1))


def test_an_empty_store_takes_no_memory(grid: KvGrid) -> None:
    # Given a store from which everything is dropped
    store = BlockStore(grid)
    store.resize(4)
    store.save([BlockCopy(0, 0, 0)])
    store.drop()
    # Then it is empty, and can be used again
    assert store.num_bytes == 0
    store.resize(2)
    store.save([BlockCopy(1, 2, 2)])
    store.load([BlockCopy(1, 0, 0)])
    assert all(torch.equal(block(tensor, 0, 0), block(tensor, 2, 2)) for tensor in grid.tensors())


def test_a_grid_that_gets_no_memory_for_its_values_has_no_keys_either(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a system that refuses the second allocation, once
    calls = []

    def refusing(file: int, length: int, **how: int) -> mmap.mmap:
        calls.append(length)
        if len(calls) == 2:
            raise OSError(12, "Cannot allocate memory")
        return allocate(file, length, **how)

    allocate = mmap.mmap
    monkeypatch.setattr("engine.kv.grid.mmap.mmap", refusing)
    grid = KvGrid((2, 8))
    new = torch.ones(1, 2, 3, 4)
    # When / Then
    with pytest.raises(torch.OutOfMemoryError, match="no 512 bytes"):
        grid.write(0, torch.arange(3), new, new)
    grid.write(0, torch.arange(3), new, new)
    assert grid.values(0)[0, :3].eq(1).all()
