import torch

from engine.paged.storage import PagedStorage

CPU = torch.device("cpu")


def test_layers_come_with_the_shapes_that_are_written_and_keep_them_in_another_number_of_pages() -> None:
    # Given storage for two pages, and a layer whose values are narrower than its keys
    storage = PagedStorage(2, CPU, page_size=4)
    assert storage.num_kv_heads == 1
    storage.layer(0, torch.zeros((1, 3, 1, 8)), torch.zeros((1, 3, 1, 5)))
    assert storage.bytes_per_token == 3 * (8 + 5) * 4
    # When it gets its final size
    storage.allocate(6)
    # Then
    keys, values = storage.layer(0, torch.zeros(1, 3, 1, 8), torch.zeros(1, 3, 1, 5))
    assert keys.shape == (7, 4, 3, 8)
    assert values.shape == (7, 4, 3, 5)
    assert storage.spare_page == 6
    assert storage.num_kv_heads == 3
    assert storage.bytes_per_token == 3 * (8 + 5) * 4


def test_the_spare_page_never_holds_what_the_memory_held_before() -> None:
    storage = PagedStorage(1, CPU, page_size=4)
    keys, values = storage.layer(0, torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 8))
    assert keys[storage.spare_page].eq(0).all()
    assert values[storage.spare_page].eq(0).all()
