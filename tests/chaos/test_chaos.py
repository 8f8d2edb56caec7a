"""The short version of `make chaos`: every kind of victim once, and nothing is lost, doubled or wrong."""

import pytest

from tests.chaos.harness import Options, run
from tests.chaos.schedule import Kind


@pytest.mark.timeout(600)
def test_every_part_is_killed_under_a_running_job_and_no_row_is_lost_doubled_or_wrong() -> None:
    # When
    result = run(Options(seed=1, num_kills=len(Kind), num_rows=10_000))

    # Then
    assert result.never_hit == []
    assert not result.differences, [*result.remarks(), result.summary()]
    assert result.num_answered > 0
    assert result.most_runs <= 1 + len(result.hits)
    assert result.again > 0, "nothing was interrupted: the strikes hit nobody at work"
