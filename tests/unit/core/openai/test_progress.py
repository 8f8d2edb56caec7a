"""Ids of events: what a client has, written and read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidRequest
from core.openai.progress import ChoiceProgress, Progress, new_progress, parse_progress

NUMBERS = st.integers(0, 10**8)
CHOICES = st.builds(
    ChoiceProgress, st.just(True), NUMBERS, st.lists(NUMBERS, max_size=3), NUMBERS, st.booleans()
) | st.builds(ChoiceProgress)


@given(st.builds(Progress, st.lists(CHOICES, min_size=1, max_size=4), NUMBERS, st.booleans()))
def test_what_is_written_is_read_back(progress: Progress) -> None:
    assert parse_progress(str(progress), len(progress.choices)) == progress


def test_nothing_sent_is_a_row_of_dashes() -> None:
    assert str(new_progress(3)) == "0:-.-.-"


@pytest.mark.parametrize("event_id", ["", "5", "1:", "1:5", "1:5.x", "x:5.5", "1:5.5.5", "1:-5.5", "1:5." + "9" * 9000])
def test_an_id_of_another_answer_is_refused(event_id: str) -> None:
    with pytest.raises(InvalidRequest, match="Last-Event-ID") as refused:
        parse_progress(event_id, 2)
    assert refused.value.param == "Last-Event-ID"
