"""The engine's main loop: takes messages, hands requests to models, lets models step in turn, sends what comes of it.

Everything here runs on one thread. Between two steps at most `_INTAKE_SECONDS` go into looking at new requests, so that
tokenization of a thousand prompts never stalls those who decode.
"""

import logging
import queue
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from core.errors import Interrupted, InvalidRequest, MillraceError, ModelFailure, NotFound, Overloaded
from core.protocol import (
    Cancel,
    ClientMessage,
    Delta,
    EngineMessage,
    EngineStats,
    Generate,
    Hello,
    Load,
    Unload,
)
from engine.link import ClientLost, LinkBroken, Received
from engine.registry import HostedModel, Loaded, Registry
from engine.runtime import Arrival, Key, Reply, failed

logger = logging.getLogger(__name__)

_INTAKE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Stop:
    """Posted by the signal handler."""


Event = Received | ClientLost | LinkBroken | Loaded | Stop


class Service:
    """send: (client, messages). `hello` is a snapshot that other threads may read at any time."""

    def __init__(
        self,
        registry: Registry,
        inbox: "queue.SimpleQueue[Event]",
        send: Callable[[bytes, list[EngineMessage]], None],
        hello: Hello,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hello = hello
        self._registry = registry
        self._inbox = inbox
        self._send = send
        self._clock = clock
        self._turns = deque(registry.models.values())
        self._live: dict[Key, HostedModel] = {}
        self._num_live: Counter[bytes] = Counter()
        self._outgoing: defaultdict[bytes, list[EngineMessage]] = defaultdict(list)
        self._is_stopping = False

    def run(self) -> None:
        """Until `Stop`. Raises what makes the engine useless: a broken link, a lost device."""
        while not self._is_stopping:
            self.turn()
        self._end_all(list(self._live), Interrupted("the engine is shutting down; send the request again"))
        self._flush()

    def turn(self) -> None:
        """Waits only where there is nothing to do."""
        self._take()
        self._admit()
        self._step()
        self._publish()
        self._flush()

    def _take(self) -> None:
        """Handle all that has arrived; wait for it only while no model has anything to do."""
        try:
            wait = self._wait_seconds()
            self._handle(self._inbox.get(block=wait != 0.0, timeout=wait))
            while not self._is_stopping:
                self._handle(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _wait_seconds(self) -> float | None:
        waits = [wait for model in self._turns if (wait := model.wait_seconds()) is not None]
        return min(waits, default=None)

    def _handle(self, event: Event) -> None:
        match event:
            case Received():
                for message in event.messages:
                    self._obey(event, message)
            case ClientLost():
                for key in [key for key in self._live if key[0] == event.client]:
                    self._withdraw(key)
            case Loaded():
                model = self._registry.settle(event)
                if model.error is not None:
                    self._end_all(self._keys_of(model), model.failure())
            case LinkBroken():
                raise event.error
            case Stop():
                self._is_stopping = True

    def _obey(self, event: Received, message: ClientMessage) -> None:
        match message:
            case Generate():
                self._accept(Arrival(event.client, message, event.arrived_seconds))
            case Cancel():
                self._cancel([(event.client, request_id) for request_id in message.ids])
            case Load():
                if (model := self._known(message.model)) is not None:
                    self._registry.start_loading(model)
            case Unload():
                if (model := self._known(message.model)) is not None:
                    error = Interrupted(f"{model.name} was unloaded", code="model_unloaded")
                    self._end_all(self._keys_of(model), error)
                    self._registry.unload(model)

    def _cancel(self, keys: list[Key]) -> None:
        """Those that are not here, given up or answered already, hear it too: their client may still count them."""
        unknown = [key for key in keys if key not in self._live]
        self._end_all([key for key in keys if key in self._live], _cancelled())
        for key in unknown:
            self._say(failed(key, _cancelled()))

    def _known(self, name: str) -> HostedModel | None:
        if name not in self._registry.models:
            logger.warning("expected one of the models %s, got %r; ignored", ", ".join(self._registry.models), name)
        return self._registry.models.get(name)

    def _accept(self, arrival: Arrival) -> None:
        try:
            model = self._checked(arrival)
        except MillraceError as error:
            self._say(failed(arrival.key, error))
            return
        self._live[arrival.key] = model
        self._num_live[arrival.client] += 1
        model.intake.push(arrival)
        self._registry.start_loading(model)

    def _checked(self, arrival: Arrival) -> HostedModel:
        """The model that is asked for. Raises where the request cannot wait for it."""
        request = arrival.request
        model = self._registry.models.get(request.model)
        if model is None:
            known = ", ".join(self._registry.models)
            raise NotFound(f"model: expected one of {known}, got {request.model!r}", code="model_not_found")
        if arrival.key in self._live:
            raise InvalidRequest(f"id: expected one that is not in flight, got {request.id!r} again", param="id")
        if self._num_live[arrival.client] >= self.hello.credits:
            raise Overloaded(f"expected at most {self.hello.credits} requests in flight; wait until one has ended")
        if self._registry.is_failing(model):
            raise model.failure()
        return model

    def _admit(self) -> None:
        for model in self._turns:
            deadline = self._clock() + _INTAKE_SECONDS
            while model.can_admit():
                self._submit(model, model.intake.pop())
                if self._clock() >= deadline:
                    break

    def _submit(self, model: HostedModel, arrival: Arrival) -> None:
        assert model.runtime is not None
        try:
            model.runtime.submit(arrival)
        except MillraceError as error:
            self._conclude(failed(arrival.key, error))
        except Exception as error:  # no message of a client may end the loop
            logger.exception("request %s could not be prepared; it fails", arrival.request.id)
            reason = f"the request could not be prepared: {type(error).__name__}: {error}"
            self._conclude(failed(arrival.key, ModelFailure(reason)))

    def _step(self) -> None:
        """One step of the next model that has something to do."""
        for _ in range(len(self._turns)):
            model = self._turns[0]
            self._turns.rotate(-1)
            if model.runtime is not None and model.runtime.wait_seconds() == 0.0:
                for reply in model.runtime.step():
                    self._conclude(reply)
                return

    def _conclude(self, reply: Reply) -> None:
        """Say what a runtime said; unless it is a delta, the runtime has forgotten the request, and so do we."""
        self._say(reply)
        if not isinstance(reply.message, Delta):
            self._forget(reply.key)

    def _end_all(self, keys: Iterable[Key], error: MillraceError) -> None:
        for key in keys:
            self._withdraw(key)
            self._say(failed(key, error))

    def _withdraw(self, key: Key) -> None:
        """Take a request back from wherever it is."""
        model = self._live[key]
        self._forget(key)
        if not model.intake.remove(key) and model.runtime is not None:
            model.runtime.cancel(key)

    def _forget(self, key: Key) -> None:
        del self._live[key]
        client = key[0]
        self._num_live[client] -= 1
        if not self._num_live[client]:
            del self._num_live[client]

    def _keys_of(self, model: HostedModel) -> list[Key]:
        return [key for key, owner in self._live.items() if owner is model]

    def _say(self, reply: Reply) -> None:
        self._outgoing[reply.key[0]].append(reply.message)

    def _flush(self) -> None:
        for client, messages in self._outgoing.items():
            self._send(client, messages)
        self._outgoing.clear()

    def _publish(self) -> None:
        self.hello = msgspec.structs.replace(self.hello, models=self._registry.statuses(), stats=self._stats())

    def _stats(self) -> EngineStats:
        runtimes = [model.runtime for model in self._turns if model.runtime is not None]
        gauges = [runtime.gauges() for runtime in runtimes]
        return EngineStats(
            num_running=sum(gauge.num_running for gauge in gauges),
            num_waiting=sum(gauge.num_waiting for gauge in gauges) + sum(len(model.intake) for model in self._turns),
            num_slots=sum(runtime.num_slots for runtime in runtimes),
            num_steps_total=sum(gauge.num_steps_total for gauge in gauges),
            prompt_tokens_total=sum(gauge.prompt_tokens_total for gauge in gauges),
            completion_tokens_total=sum(gauge.completion_tokens_total for gauge in gauges),
            step_seconds_total=sum(gauge.step_seconds_total for gauge in gauges),
            kv_used_fraction=max((gauge.kv_used_fraction for gauge in gauges), default=0.0),
        )


def _cancelled() -> Interrupted:
    error = Interrupted("cancelled by the client", code="cancelled")
    error.is_retryable = False
    return error
