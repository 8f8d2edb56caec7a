from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from core.errors import Unavailable
from core.settings import Settings
from tasks.factory import create_app
from tasks.messages import FINALIZE_JOB, RUN_CHUNK, VALIDATE_BATCH, Messages
from tasks.queues import UPKEEP


@pytest.fixture
def app() -> Iterator[Celery]:
    """With a broker inside this process."""
    app = create_app(Settings(redis_url="memory://"))
    yield app
    app.close()


def received(app: Celery, queue: str) -> tuple[str, dict[str, Any]]:
    """Task and arguments of the next message."""
    with app.connection_for_read() as connection:
        simple = connection.SimpleQueue(queue)
        message = simple.get(block=False)
        simple.close()
    return message.headers["task"], message.payload[1]


def test_a_wake_up_goes_to_the_queue_of_its_class_and_model(app: Celery) -> None:
    # When
    Messages(app).wake_up("batch", "org/model", "batch_1#3")

    # Then
    arguments = {"model": "org/model", "chunk": "batch_1#3", "service_class": "batch"}
    assert received(app, "batch.org/model") == (RUN_CHUNK, arguments)


def test_long_work_on_a_job_goes_to_upkeep(app: Celery) -> None:
    # Given
    messages = Messages(app)

    # When
    messages.validate_batch("batch_1")
    messages.finalize_job("batch_2")

    # Then
    assert received(app, UPKEEP) == (VALIDATE_BATCH, {"job": "batch_1"})
    assert received(app, UPKEEP) == (FINALIZE_JOB, {"job": "batch_2"})


def test_a_broker_that_is_away_is_unavailable_and_says_that_nothing_is_lost() -> None:
    # Given
    app = create_app(Settings(redis_url="unix:///nowhere/valkey.sock?db=0"))

    # When
    with pytest.raises(Unavailable, match="the reconciler sends the message again"):
        Messages(app).validate_batch("batch_1")
    app.close()
