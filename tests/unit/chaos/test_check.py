from dataclasses import replace

import pytest

from tests.chaos.check import Ended, Line, differences, run_again

EXPECTED = {"a": "1", "b": "2", "c": "3"}
LINES = [Line(name, answer) for name, answer in EXPECTED.items()]
SOUND = Ended(
    name="batch",
    state="completed",
    expected=EXPECTED,
    lines=LINES,
    outcomes=LINES,
    job_counters=(3, 0),
    chunk_counters=(3, 0),
    attempts=[1, 2],
)


def test_rows_of_a_release_that_noted_no_attempts_are_no_difference_where_there_was_one() -> None:
    job = replace(SOUND, row_attempts=[(0, 1), (1, 1)])
    assert differences(job, max_attempts=2).counts
    assert not differences(job, max_attempts=2, least_row_attempt=0)


def test_a_sound_job_shows_no_difference() -> None:
    assert not differences(SOUND, max_attempts=2)


@pytest.mark.parametrize(
    ("found", "counted"),
    [
        (LINES[:2], (1, 0, 0)),
        ([*LINES, LINES[0]], (0, 1, 0)),
        ([*LINES[:2], Line("c", "4")], (0, 0, 1)),
        ([*LINES[:2], Line("c", None)], (0, 0, 1)),
        ([*LINES, Line("d", "4")], (0, 0, 1)),
        ([*LINES[:2], LINES[0]], (1, 1, 0)),
    ],
)
def test_what_is_lost_doubled_or_wrong_shows_in_files_and_in_outcomes(
    found: list[Line], counted: tuple[int, int, int]
) -> None:
    for changed in (replace(SOUND, lines=found), replace(SOUND, outcomes=found)):
        seen = differences(changed, max_attempts=2)
        assert (seen.lost, seen.doubled, seen.wrong) == counted
        assert seen


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"state": "expired"}, "got it expired"),
        ({"job_counters": (2, 1)}, "in the job, got 2 and 1"),
        ({"chunk_counters": (4, 0)}, "in its chunks, got 4 and 0"),
        ({"attempts": [1, 3]}, "begun 1 to 2 times, got 3"),
        ({"attempts": [0]}, "got 0"),
        ({"row_attempts": [(1, 2), (3, 2)]}, "attempt 1 to 2 of its chunk, got 3"),
        ({"row_attempts": [(0, 1)]}, "got 0"),
        ({"num_retries": 2}, "counted against a row, got 2"),
    ],
)
def test_states_counters_and_attempts_are_compared_too(changed: dict[str, object], sentence: str) -> None:
    (said,) = differences(replace(SOUND, **changed), max_attempts=2).counts  # type: ignore[arg-type]
    assert sentence in said


def test_rows_that_ran_again_are_counted_by_their_arrivals() -> None:
    assert run_again([]) == (0, 0)
    assert run_again(["x", "y", "x", "x", "z", "z"]) == (3, 3)
