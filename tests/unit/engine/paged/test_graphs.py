import logging
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.gpu.waits import HostWaits
from engine.paged.graphs import Compute, DecodeReplays, EagerReplay, Replay, batch_sizes, rehearse

CPU = torch.device("cpu")


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


class Rehearsing:
    """Stands for captures: a rehearsal, and then a replay that says which size it was made for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, compute: Compute, batch_size: int) -> Replay:
        rehearse(compute, batch_size, CPU)
        self.sizes.append(batch_size)
        return EagerReplay(lambda size: torch.full((size, 1), -1.0), batch_size)


@torch.inference_mode()
def test_all_sizes_are_captured_the_largest_first() -> None:
    # Given
    replays = DecodeReplays(lambda size: torch.zeros(size, 1), 9)
    captures = Rehearsing()
    # When
    replays.capture(captures)
    # Then
    assert captures.sizes == [9, 8, 4, 2, 1]
    assert replays.padded(3) == 4
    assert replays.logits(4).tolist() == [[-1.0]] * 4


def _reads_a_number(size: int) -> Tensor:
    scores = torch.ones(size, 2)
    return scores * scores.sum().item()


def _branches(size: int) -> Tensor:
    outliers = torch.ones(size, 2) > 2
    return torch.ones(size, 2) if outliers.any() else torch.zeros(size, 2)


def _routes(size: int) -> Tensor:
    experts = torch.arange(size)
    return torch.zeros(size, 2).index_add(0, torch.where(experts > 0)[0], torch.ones(size - 1, 2))


@pytest.mark.parametrize("waiting", [_reads_a_number, _branches, _routes])
def test_a_pass_that_waits_for_its_device_is_never_captured(
    waiting: Callable[[int], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    # Given a pass that waits
    replays = DecodeReplays(waiting, 2)
    captures = Rehearsing()
    # When
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        replays.capture(captures)
    # Then it runs as it is, and the log says why
    assert captures.sizes == []
    assert torch.equal(replays.logits(2), waiting(2))
    assert "waits for the device" in caplog.text


def test_what_waits_in_its_first_run_alone_may_be_captured() -> None:
    # Given a pass that looks at a value once, as libraries do that choose an algorithm
    chosen: list[float] = []

    def compute(size: int) -> Tensor:
        if not chosen:
            chosen.append(torch.ones(1).item())
        return torch.zeros(size, 1)

    # Then
    assert rehearse(compute, 2, CPU).shape == (2, 1)


def test_a_rehearsal_finds_what_waits_before_anything_is_captured() -> None:
    with pytest.raises(HostWaits, match="waits"):
        rehearse(_branches, 1, CPU)


def test_another_failure_of_a_capture_is_no_reason_to_go_without_graphs() -> None:
    def fail(compute: Compute, batch_size: int) -> Replay:
        raise ValueError("out of resources")

    with pytest.raises(ValueError, match="out of resources"):
        DecodeReplays(lambda size: torch.zeros(size, 1), 2).capture(fail)
