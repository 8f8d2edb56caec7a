from collections.abc import Mapping
from typing import TypeVar

import pytest

from core.job import (
    CHUNK_MOVES,
    JOB_MOVES,
    TERMINAL_CHUNK_STATES,
    TERMINAL_JOB_STATES,
    ChunkState,
    JobState,
)

State = TypeVar("State", JobState, ChunkState)


def reachable(moves: Mapping[State, frozenset[State]], start: State) -> set[State]:
    """Every state that may come after `start`."""
    found: set[State] = set()
    waiting = [start]
    while waiting:
        new = moves[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_every_state_has_its_place_in_the_table() -> None:
    assert set(JOB_MOVES) == set(JobState)
    assert set(CHUNK_MOVES) == set(ChunkState)


def test_the_states_of_jobs_are_those_of_openais_batch() -> None:
    assert {state.value for state in JobState} == {
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    }


def test_jobs_end_completed_failed_expired_or_cancelled() -> None:
    assert {JobState.COMPLETED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED} == TERMINAL_JOB_STATES


def test_chunks_end_done_or_cancelled() -> None:
    assert {ChunkState.DONE, ChunkState.CANCELLED} == TERMINAL_CHUNK_STATES


@pytest.mark.parametrize("state", sorted(set(JobState) - TERMINAL_JOB_STATES))
def test_no_job_can_get_stuck(state: JobState) -> None:
    assert reachable(JOB_MOVES, state) & TERMINAL_JOB_STATES


@pytest.mark.parametrize("state", sorted(set(ChunkState) - TERMINAL_CHUNK_STATES))
def test_no_chunk_can_get_stuck(state: ChunkState) -> None:
    assert reachable(CHUNK_MOVES, state) & TERMINAL_CHUNK_STATES


def test_every_state_can_be_reached_from_the_first() -> None:
    assert reachable(JOB_MOVES, JobState.VALIDATING) == set(JobState) - {JobState.VALIDATING}
    assert reachable(CHUNK_MOVES, ChunkState.WAITING) == set(ChunkState)


def test_no_job_comes_back_to_where_it_was() -> None:
    assert [state for state in JobState if state in reachable(JOB_MOVES, state)] == []


def test_only_a_leased_chunk_is_ever_done() -> None:
    assert [state for state, following in CHUNK_MOVES.items() if ChunkState.DONE in following] == [ChunkState.RUNNING]
