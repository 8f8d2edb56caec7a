import torch

from engine.paged.readback import TokensComing
from tests.unit.engine.paged.pages import sequence


class Place:
    """A mark that notes that somebody waited for it."""

    is_reached = False

    def synchronize(self) -> None:
        self.is_reached = True


def test_tokens_are_waited_for_when_somebody_asks() -> None:
    # Given
    place = Place()
    coming = TokensComing([sequence([5], [0])], torch.tensor([7]), lambda: place)
    assert not place.is_reached
    # Then
    assert [sampled.token_id for sampled in coming.result()] == [7]
    assert place.is_reached


def test_a_launch_without_tokens_is_waited_for_too() -> None:
    # Given pieces of prompts that are not the last
    place = Place()
    coming = TokensComing([], torch.empty(0, dtype=torch.int64), lambda: place)
    # Then
    assert coming.result() == []
    assert place.is_reached
