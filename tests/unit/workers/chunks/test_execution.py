"""What becomes of a chunk whose engine refuses: it is given back, in smaller groups and not in a hurry."""

import json
import time

import pytest

from core.protocol import Failed, Generate
from db.chunks import Lease, Request
from tests.unit.workers.chunks.test_deltas import Told
from workers.chunks.deltas import Deltas
from workers.chunks.execution import Execution, RunnerOptions
from workers.chunks.keeper import Watch

OPTIONS = RunnerOptions("owner", ("test/model",), 15.0, 0.1, 30.0, 3)
BODY = json.dumps({"model": "test/model", "messages": [{"role": "user", "content": "hi"}]}).encode()


@pytest.fixture
def execution() -> Execution:
    endpoint = "/v1/chat/completions"
    lease = Lease(
        1, "owner", 1, 7, "batch_abc", "default", 0, 0, 10, "test/model", endpoint, 0, None, 0, None, "batch", 15.0
    )
    made = Execution(lease, Watch(lease, time.monotonic), OPTIONS, Deltas(Told(), "batch_abc", 1), lambda: 0.5)
    made.begin([Request(index, BODY) for index in range(10)])
    return made


def refuse(execution: Execution, code: str) -> None:
    first, *_ = execution.messages(granted=4)
    assert isinstance(first, Generate)
    execution.take(Failed(first.id, code, "not now", is_retryable=True))


def test_a_chunk_that_an_engine_has_no_room_for_is_given_back_and_sends_nothing_more(execution: Execution) -> None:
    # When
    refuse(execution, "overloaded")
    # Then
    assert execution.is_over(is_draining=False)
    assert execution.was_refused
    assert execution.crash_width == 4
    assert execution.messages(granted=4) == []
    assert execution.num_unfinished == 10


def test_an_engine_that_is_lost_has_refused_nothing(execution: Execution) -> None:
    # When
    refuse(execution, "engine_lost")
    # Then
    assert execution.is_over(is_draining=False)
    assert not execution.was_refused
