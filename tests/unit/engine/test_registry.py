"""Loading, failing, trying again, unloading."""

import queue
from collections.abc import Callable

import pytest

from core.errors import ModelFailure
from core.protocol import BULK_PRIORITY, ONLINE_PRIORITY, Generate
from engine.null import NullModel
from engine.registry import RETRY_SECONDS, HostedModel, Loaded, Registry
from engine.runtime import Arrival, Runtime
from tests.polling import until

DEADLINE_SECONDS = 30.0


class Scene:
    """A registry of one model `m`, whose loads go through `load`, and a clock to turn."""

    def __init__(self, load: Callable[[str, str], Runtime]) -> None:
        self.now = 0.0
        self.inbox: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self.registry = Registry({"m": "source"}, load, self.inbox.put, lambda: self.now)

    @property
    def model(self) -> HostedModel:
        return self.registry.models["m"]

    def settle(self) -> HostedModel:
        return self.registry.settle(self.inbox.get(timeout=DEADLINE_SECONDS))


def null(_name: str, _source: str) -> Runtime:
    return NullModel(0.0, 4)


def refuse(name: str, source: str) -> Runtime:
    raise ModelFailure(f"{name} from {source} is damaged")


def test_a_model_is_loaded_once_however_often_it_is_asked_for() -> None:
    # Given a model that nobody has asked for
    scene = Scene(null)
    assert scene.registry.statuses()[0].state == "unloaded"
    # When it is asked for three times
    for _ in range(3):
        scene.registry.start_loading(scene.model)
    assert scene.registry.statuses()[0].state == "loading"
    # Then it is loaded once
    assert scene.settle().runtime is not None
    scene.registry.start_loading(scene.model)
    assert scene.registry.statuses()[0].state == "ready"
    assert scene.inbox.empty()


def test_a_failure_is_kept_for_a_while_and_then_tried_again() -> None:
    # Given a model that failed to load
    scene = Scene(refuse)
    scene.registry.start_loading(scene.model)
    scene.settle()
    status = scene.registry.statuses()[0]
    assert (status.state, status.error) == ("failed", "m from source is damaged")
    # Then requests do not try again at once, but later they do
    assert scene.registry.is_failing(scene.model)
    scene.now = RETRY_SECONDS
    assert not scene.registry.is_failing(scene.model)
    scene.registry.start_loading(scene.model)
    assert scene.registry.statuses()[0].state == "loading"
    scene.settle()


@pytest.mark.parametrize("error", [ValueError("odd file"), MemoryError()])
def test_whatever_loading_raises_becomes_a_failure_and_the_thread_lives_on(error: Exception) -> None:
    # Given a loader that raises something unexpected first
    errors = [error]

    def load(name: str, source: str) -> Runtime:
        if errors:
            raise errors.pop()
        return null(name, source)

    scene = Scene(load)
    scene.registry.start_loading(scene.model)
    assert isinstance(scene.settle().error, ModelFailure)
    # When it is tried again, then it loads
    scene.registry.start_loading(scene.model)
    assert scene.settle().runtime is not None


def test_a_model_that_is_unloaded_while_it_loads_does_not_stay() -> None:
    scene = Scene(null)
    scene.registry.start_loading(scene.model)
    scene.registry.unload(scene.model)
    assert scene.settle().runtime is None
    assert scene.registry.statuses()[0].state == "unloaded"


def test_bulk_work_that_is_held_is_no_work_at_the_door() -> None:
    # Given a model with a bulk request at its door
    scene = Scene(null)
    scene.registry.start_loading(scene.model)
    model = scene.settle()
    model.intake.push(Arrival(b"c", Generate("bulk", "m", text="x"), 0.0))
    assert (model.can_admit(BULK_PRIORITY), model.wait_seconds(BULK_PRIORITY)) == (True, 0.0)
    # When bulk work is held, there is nothing to do for it until something urgent comes
    assert (model.can_admit(ONLINE_PRIORITY), model.wait_seconds(ONLINE_PRIORITY)) == (False, None)
    model.intake.push(Arrival(b"c", Generate("urgent", "m", text="x", priority=ONLINE_PRIORITY), 0.0))
    assert (model.can_admit(ONLINE_PRIORITY), model.wait_seconds(ONLINE_PRIORITY)) == (True, 0.0)


def test_a_registry_that_is_closed_loads_nothing_more() -> None:
    scene = Scene(null)
    scene.registry.close()
    scene.registry.start_loading(scene.model)
    until(lambda: not scene.registry._thread.is_alive())
    assert scene.inbox.empty()
