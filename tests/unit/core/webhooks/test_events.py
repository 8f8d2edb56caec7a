import pytest

from core.job import TERMINAL_JOB_STATES, JobState
from core.webhooks.events import of_ended_job


@pytest.mark.parametrize("state", sorted(TERMINAL_JOB_STATES))
def test_every_end_of_a_job_is_an_event(state: JobState) -> None:
    assert of_ended_job("batch_1", state).value == f"batch.{state.value}"
    assert of_ended_job("job_1", state).value == f"job.{state.value}"
