"""What the figures of the dispatch line count."""

import pytest

from benchmarks.dispatch.fairness import WINDOW_CHUNKS, Turn, window_shares
from benchmarks.dispatch.kills import count
from benchmarks.dispatch.leases import by_lease


def test_only_arrivals_after_the_first_of_a_row_count_as_run_again() -> None:
    costs = count(["a", "b", "a", "c", "a", "d"], num_kills=2)
    assert (costs.num_rows, costs.again) == (4, 2)
    assert costs.fraction_per_kill == pytest.approx(0.25)


def test_tenants_that_take_turns_have_half_of_every_window() -> None:
    turns = [Turn("left" if index % 2 else "right", 10) for index in range(60)]
    shares = window_shares(turns)
    assert len(shares) == 60 - WINDOW_CHUNKS + 1
    assert set(shares) == {0.5}


def test_a_tenant_that_has_to_wait_shows_in_the_window_in_which_it_waits() -> None:
    turns = [Turn("right", 10)] * WINDOW_CHUNKS + [Turn("left", 10)] * WINDOW_CHUNKS
    assert min(window_shares(turns)) == 0.0


def test_what_disturbed_leases_is_shown_beside_each_other_for_every_length() -> None:
    losses = {"paused_5_s": {5: 0.5, 60: 0.0}, "busy": {5: 0.25, 60: 0.0}}
    assert by_lease(losses) == {"5_s": {"paused_5_s": 0.5, "busy": 0.25}, "60_s": {"paused_5_s": 0.0, "busy": 0.0}}
