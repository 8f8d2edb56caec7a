import logging
from collections.abc import Callable

import pytest

from core.errors import (
    ConfigurationError,
    Interrupted,
    InvalidRequest,
    LeaseLost,
    MillraceError,
    Overloaded,
    Unavailable,
)
from core.settings import Settings
from tasks.base import MillraceTask
from tasks.factory import create_app


def task_that(action: Callable[[], object]) -> MillraceTask:
    app = create_app(Settings())

    @app.task(name="test.action", shared=False)
    def run() -> object:
        return action()

    assert isinstance(run, MillraceTask)
    return run


def failing(error: Exception) -> MillraceTask:
    def action() -> object:
        raise error

    return task_that(action)


def test_a_task_gives_what_its_function_gives() -> None:
    assert task_that(lambda: 7)() == 7


@pytest.mark.parametrize("error", [Unavailable("away"), Overloaded("full"), Interrupted("shut down")])
def test_what_may_pass_by_itself_ends_the_message_with_a_warning(
    error: MillraceError, caplog: pytest.LogCaptureFixture
) -> None:
    # When
    with caplog.at_level(logging.WARNING):
        assert failing(error)() is None

    # Then
    (record,) = caplog.records
    assert error.message in record.getMessage()
    assert "reconciler" in record.getMessage()


@pytest.mark.parametrize(
    "error", [InvalidRequest("wrong"), ConfigurationError("wrong"), LeaseLost("taken"), RuntimeError("a defect")]
)
def test_what_no_other_try_can_mend_is_a_failure_that_is_seen(error: Exception) -> None:
    with pytest.raises(type(error)):
        failing(error)()
