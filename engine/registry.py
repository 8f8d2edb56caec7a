"""The models of an engine: by name, where they come from, which are loaded, and what waits for them.

Loading takes seconds to minutes, so it happens on a thread of its own while other models go on stepping; its result
comes back through the service's inbox (`settle`). A model that failed to load is tried again, but not at once for every
waiting request.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from core.errors import MillraceError, ModelFailure
from core.protocol import (
    MODEL_FAILED,
    MODEL_LOADING,
    MODEL_READY,
    MODEL_UNLOADED,
    ModelStatus,
)
from engine.embedding.kind import told_kind
from engine.runtime import Runtime
from engine.waiting.intake import Intake

logger = logging.getLogger(__name__)

RETRY_SECONDS = 10.0

Loader = Callable[[str, str], Runtime]


@dataclass(slots=True, eq=False)
class HostedModel:
    """error, retry_seconds: of the last failure, and the clock reading before which requests do not try again.

    is_wanted: false once it was unloaded while it was loading.
    kind: as its files tell, or as it turned out to be; empty while that is not known.
    used_seconds: of the device, by which turns are taken. was_ready: whether it had something to do in the last turn.
    """

    name: str
    source: str
    state: str = MODEL_UNLOADED
    runtime: Runtime | None = None
    intake: Intake = field(default_factory=Intake)
    error: MillraceError | None = None
    retry_seconds: float = 0.0
    is_wanted: bool = True
    kind: str = ""
    used_seconds: float = 0.0
    was_ready: bool = False

    def status(self) -> ModelStatus:
        if self.runtime is not None:
            size = (self.runtime.context_tokens, self.runtime.weight_bytes)
            return ModelStatus(self.name, self.state, *size, kind=self.kind)
        error = "" if self.error is None else self.error.message
        return ModelStatus(self.name, self.state, error=error, kind=self.kind)

    def failure(self) -> ModelFailure:
        assert self.error is not None
        failure = ModelFailure(self.error.message, code="model_not_loaded")
        failure.is_retryable = True  # what is missing may come: files, a hub, memory
        return failure

    def can_admit(self, lowest_priority: float) -> bool:
        priority = self.intake.best_priority
        return self.runtime is not None and priority is not None and priority >= lowest_priority

    def wait_seconds(self, lowest_priority: float) -> float | None:
        """How long until there is something to do for it; None is not before the next message."""
        if self.runtime is None:
            return None
        return 0.0 if self.can_admit(lowest_priority) else self.runtime.wait_seconds()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the loading thread posts."""

    name: str
    outcome: Runtime | MillraceError


class Registry:
    def __init__(
        self, sources: Mapping[str, str], load: Loader, post: Callable[[Loaded], None], clock: Callable[[], float]
    ) -> None:
        self.models = {name: HostedModel(name, source, kind=told_kind(source)) for name, source in sources.items()}
        self._load = load
        self._post = post
        self._clock = clock
        self._orders: queue.SimpleQueue[HostedModel | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="loading", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nothing is loaded any more; does not wait for what is loading now."""
        self._orders.put(None)

    def statuses(self) -> list[ModelStatus]:
        return [model.status() for model in self.models.values()]

    def is_failing(self, model: HostedModel) -> bool:
        """Whether it failed so recently that another try is not worth it yet."""
        return model.state == MODEL_FAILED and self._clock() < model.retry_seconds

    def start_loading(self, model: HostedModel) -> None:
        """Does nothing where it is loaded or loading."""
        model.is_wanted = True
        if model.state in (MODEL_LOADING, MODEL_READY):
            return
        model.state = MODEL_LOADING
        self._orders.put(model)

    def settle(self, loaded: Loaded) -> HostedModel:
        """Take over what the thread made. The caller serves or fails what waits."""
        model = self.models[loaded.name]
        if isinstance(loaded.outcome, MillraceError):
            model.state, model.error = MODEL_FAILED, loaded.outcome
            model.retry_seconds = self._clock() + RETRY_SECONDS
            logger.error("%s is not served: %s", model.name, loaded.outcome.message)
        else:
            model.state, model.runtime, model.error = MODEL_READY, loaded.outcome, None
            model.kind = loaded.outcome.kind
            if not model.is_wanted:
                self.unload(model)
        return model

    def unload(self, model: HostedModel) -> None:
        """The caller has failed its requests."""
        model.is_wanted = False
        if model.runtime is not None:
            model.runtime.close()
            model.runtime, model.state = None, MODEL_UNLOADED
            logger.info("%s is unloaded; its next request loads it again", model.name)

    def _work(self) -> None:
        while (model := self._orders.get()) is not None:
            self._post(Loaded(model.name, self._try_to_load(model)))

    def _try_to_load(self, model: HostedModel) -> Runtime | MillraceError:
        try:
            return self._load(model.name, model.source)
        except MillraceError as error:
            return error
        except BaseException as error:  # the thread must outlive whatever a model's files provoke, a panic in Rust too
            logger.exception("%s: loading failed unexpectedly", model.name)
            return ModelFailure(f"{model.name} cannot be loaded: {type(error).__name__}: {error}")
