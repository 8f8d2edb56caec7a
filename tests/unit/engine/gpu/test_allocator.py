"""Memory is given back between captures, never during one, and no more after one has failed."""

import threading

import pytest

from engine.gpu.allocator import DeviceAllocator


class Counting(DeviceAllocator):
    """Notes when memory is given back."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def _give_back(self) -> None:
        self.events.append("given back")


def test_giving_back_waits_for_a_capture_on_another_thread() -> None:
    # Given a capture
    allocator = Counting()
    with allocator.capturing():
        # When another thread unloads a model meanwhile
        other = threading.Thread(target=allocator.release)
        other.start()
        other.join(timeout=0.05)
        allocator.events.append("captured")
    other.join()
    # Then
    assert allocator.events == ["captured", "given back"]


def test_after_a_failed_capture_nothing_is_given_back() -> None:
    # Given
    allocator = Counting()
    with pytest.raises(RuntimeError, match="no capture"), allocator.capturing():
        raise RuntimeError("no capture")
    # When
    allocator.release()
    # Then
    assert allocator.is_broken
    assert allocator.events == []
