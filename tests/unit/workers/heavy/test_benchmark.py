"""The requests of a benchmark: made one by one, and no longer than the model takes."""

import pytest

from core.errors import Interrupted, ModelFailure
from core.heavy import Workload
from core.protocol import Generate, ModelStatus
from workers.engine_client import EngineClient
from workers.heavy.benchmark import _Run, check_length, requests
from workers.heavy.engine_access import EngineSession
from workers.heavy.work import Talk, Task

TASK = Task("job_1", "default", "m", "")
WORKLOAD = Workload(prompt_tokens=3, answer_tokens=5, num_requests=10**12, concurrency=4)


class Stopping(EngineSession):
    """An engine whose job is stopped with the first request."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(EngineClient("ipc:///nowhere", name="test"), 1.0)
        self.talk = talk
        self.num_requests = 0

    def submit(self, requests: object) -> None:
        self.num_requests += 1
        self.talk.stop.set()


def test_requests_are_made_when_they_are_asked_for() -> None:
    # When
    first = next(requests(TASK, WORKLOAD))
    # Then
    assert isinstance(first, Generate)
    assert len(first.token_ids or ()) == 3
    assert first == next(requests(TASK, WORKLOAD))


def test_a_stop_is_heard_between_two_requests() -> None:
    # Given
    talk = Talk()
    engine = Stopping(talk)
    # When
    with pytest.raises(Interrupted):
        _Run(TASK, WORKLOAD, concurrency=4).drive(engine, talk)
    # Then
    assert engine.num_requests == 1


def test_requests_longer_than_the_context_are_refused() -> None:
    check_length(WORKLOAD, ModelStatus("m", "ready", context_tokens=8))
    check_length(WORKLOAD, ModelStatus("m", "ready"))
    with pytest.raises(ModelFailure, match="fit into the 7 tokens"):
        check_length(WORKLOAD, ModelStatus("m", "ready", context_tokens=7))
