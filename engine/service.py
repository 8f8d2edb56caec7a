"""The engine's main loop: takes messages, hands requests to models, lets models step in turn, sends what comes of it.

Everything here runs on one thread. Between two steps at most `_INTAKE_SECONDS` go into looking at new requests, the
most urgent first, so that tokenization of a thousand prompts stalls neither those who decode nor those who wait.
Deadlines and cancels take effect between two steps, wherever the request is. Requests that run alone wait in the
quarantine until no model has a request any more.
"""

import logging
import math
import queue
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from core.errors import Interrupted, InvalidRequest, MillraceError, ModelFailure, NotFound, Overloaded
from core.protocol import (
    ONLINE_PRIORITY,
    Begun,
    Cancel,
    ClientMessage,
    Confirm,
    Delta,
    Embed,
    EngineMessage,
    EngineStats,
    Generate,
    Hello,
    Load,
    Spent,
    Unload,
)
from engine.link import ClientLost, LinkBroken, Received
from engine.registry import HostedModel, Loaded, Registry
from engine.runtime import Arrival, Key, Reply, failed
from engine.telemetry.instruments import Instruments
from engine.telemetry.statistics import Statistics
from engine.waiting.deadlines import Deadlines
from engine.waiting.quarantine import Quarantine

logger = logging.getLogger(__name__)

_INTAKE_SECONDS = 0.005
_PUBLISH_SECONDS = 0.05  # while steps follow each other; on a GPU they are shorter than that by far
_LONGEST_WAIT_SECONDS = 3600.0  # deadlines may be further away than the system can count
_LOOK_SECONDS = 1.0  # while figures fade or bulk work is held though nothing else happens


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
        instruments: Instruments | None = None,
    ) -> None:
        self.hello = hello
        self._instruments = instruments or Instruments()
        self._clock = self._instruments.clock
        self._registry = registry
        self._inbox = inbox
        self._send = send
        self._turns = deque(registry.models.values())
        self._live: dict[Key, HostedModel] = {}
        self._handed: set[Key] = set()  # those of them that a runtime has
        self._quarantine = Quarantine(self._can_begin_alone)
        self._num_live: Counter[bytes] = Counter()
        self._deadlines = Deadlines()
        self._statistics = Statistics()
        self._published_seconds = -math.inf
        self._outgoing: defaultdict[bytes, list[EngineMessage]] = defaultdict(list)
        self._is_stopping = False

    def run(self) -> None:
        """Until `Stop`. Raises what makes the engine useless: a broken link, a lost device."""
        while not self._is_stopping:
            self.turn()

    def end(self) -> None:
        """After `run`: nothing is in flight any more."""
        self._end_all(list(self._live), Interrupted("the engine is shutting down; send the request again"))
        self._flush()

    def turn(self) -> None:
        """Waits only where there is nothing to do."""
        self._take()
        self._expire()
        self._mind_heat()
        self._admit()
        self._step()
        self._publish()
        self._flush()

    def _take(self) -> None:
        """Handle all that has arrived; wait for it only while no model has anything to do."""
        try:
            self._handle(self._next_event())
            while not self._is_stopping:
                self._handle(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _next_event(self) -> Event:
        """Raises queue.Empty. The watchdog's time begins when the wait is over."""
        watchdog, wait = self._instruments.watchdog, self._wait_seconds()
        if wait != 0.0:
            watchdog.rest()
        try:
            return self._inbox.get(block=wait != 0.0, timeout=wait)
        finally:
            watchdog.begin()

    def _wait_seconds(self) -> float | None:
        """0 is that there is something to do now, None that there is nothing before the next event."""
        now = self._clock()
        lowest_priority = self._lowest_priority(now)
        waits = [model.wait_seconds(lowest_priority) for model in self._turns]
        waits.append(self._quarantine.wait_seconds(now, is_idle=not self._handed))
        if 0.0 in waits:
            return 0.0
        waits.append(self._deadlines.wait_seconds(now))
        if self._is_bulk_held or self.hello.stats.completion_tokens_per_second:
            waits.append(_LOOK_SECONDS)
        return min((min(wait, _LONGEST_WAIT_SECONDS) for wait in waits if wait is not None), default=None)

    @property
    def _is_bulk_held(self) -> bool:
        return self._instruments.throttle.is_throttled

    def _handle(self, event: Event) -> None:
        match event:
            case Received():
                for message in event.messages:
                    self._obey(event, message)
            case ClientLost():
                for key in [key for key in self._live if key[0] == event.client]:
                    self._withdraw(key)
            case Loaded():
                self._settle(event)
            case LinkBroken():
                raise event.error
            case Stop():
                self._is_stopping = True

    def _settle(self, loaded: Loaded) -> None:
        model = self._registry.settle(loaded)
        if model.error is not None:
            self._end_all(self._keys_of(model), model.failure())
        elif model.runtime is not None:
            model.runtime.hold_bulk(self._is_bulk_held)

    def _obey(self, event: Received, message: ClientMessage) -> None:
        match message:
            case Generate() | Embed():
                self._accept(Arrival(event.client, message, event.arrived_seconds))
            case Cancel():
                self._cancel([(event.client, request_id) for request_id in dict.fromkeys(message.ids)])
            case Confirm():
                self._confirm([(event.client, request_id) for request_id in dict.fromkeys(message.ids)])
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

    def _confirm(self, keys: list[Key]) -> None:
        for key in keys:
            if key not in self._live:
                self._say(failed(key, Interrupted("the request never arrived; send it again", code="not_received")))

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
        if arrival.deadline_seconds is not None:
            self._deadlines.add(arrival.key, arrival.deadline_seconds)
        line = self._quarantine if arrival.request.is_alone else model.intake
        line.push(arrival)
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
        if request.timeout_seconds is not None and not request.timeout_seconds > 0:
            raise InvalidRequest(
                f"timeout_seconds: expected more than 0, got {request.timeout_seconds}", param="timeout_seconds"
            )
        if self._num_live[arrival.client] >= self.hello.credits:
            raise Overloaded(f"expected at most {self.hello.credits} requests in flight; wait until one has ended")
        if self._registry.is_failing(model):
            raise model.failure()
        return model

    def _expire(self) -> None:
        if keys := self._deadlines.take_due(self._clock()):
            self._end_all(keys, _too_late())

    def _mind_heat(self) -> None:
        """A device that is too hot begins no bulk work until it has cooled down."""
        if not self._instruments.heat_changed():
            return
        effect = "begins no bulk work until it has cooled down" if self._is_bulk_held else "begins bulk work again"
        logger.warning("the device reads %s and %s", self._instruments.reading, effect)
        for model in self._turns:
            if model.runtime is not None:
                model.runtime.hold_bulk(self._is_bulk_held)

    def _lowest_priority(self, now: float) -> float:
        """Of what may begin."""
        lowest_priority = self._quarantine.lowest_priority(now)
        return max(lowest_priority, ONLINE_PRIORITY) if self._is_bulk_held else lowest_priority

    def _admit(self) -> None:
        lowest_priority = self._lowest_priority(self._clock())
        for model in self._turns:
            deadline = self._clock() + _INTAKE_SECONDS
            while model.can_admit(lowest_priority):
                self._submit(model, model.intake.pop())
                if self._clock() >= deadline:
                    break
        self._admit_alone()

    def _admit_alone(self) -> None:
        if self._handed:
            return
        now = self._clock()
        if (arrival := self._quarantine.pop(now)) is not None:
            self._submit(self._live[arrival.key], arrival)
        elif (arrival := self._quarantine.announce(now)) is not None:
            self._outgoing[arrival.client].append(Begun(arrival.request.id))

    def _can_begin_alone(self, arrival: Arrival) -> bool:
        is_held = self._is_bulk_held and arrival.request.priority < ONLINE_PRIORITY
        return self._live[arrival.key].runtime is not None and not is_held

    def _submit(self, model: HostedModel, arrival: Arrival) -> None:
        assert model.runtime is not None
        self._handed.add(arrival.key)
        try:
            model.runtime.submit(arrival)
        except MillraceError as error:
            self._conclude(failed(arrival.key, error))
        except Exception as error:  # no message of a client may end the loop
            logger.exception("request %s could not be prepared; it fails", arrival.request.id)
            reason = f"the request could not be prepared: {type(error).__name__}: {error}"
            self._conclude(failed(arrival.key, ModelFailure(reason)))

    def _step(self) -> None:
        """One step of the model that has had the least of the device's time, as steps differ in length. Whoever comes
        back from a rest begins where the others are."""
        ready = [model for model in self._turns if model.runtime is not None and model.runtime.wait_seconds() == 0.0]
        least = min((model.used_seconds for model in ready if model.was_ready), default=0.0)
        for model in self._turns:
            is_ready = model in ready
            if is_ready and not model.was_ready:
                model.used_seconds = max(model.used_seconds, least)
            model.was_ready = is_ready
        if not ready:
            return
        model = min(ready, key=attrgetter("used_seconds"))
        self._turns.remove(model)
        self._turns.append(model)  # of equals the one that waited longest is next
        assert model.runtime is not None
        started = self._clock()
        for reply in model.runtime.step():
            self._conclude(reply)
        model.used_seconds += self._clock() - started

    def _conclude(self, reply: Reply) -> None:
        """Say what a runtime said; unless it is a delta, the runtime has forgotten the request, and so do we. Nobody
        hears of a request that has ended already."""
        if reply.key not in self._live:
            return
        self._say(reply)
        if not isinstance(reply.message, Delta):
            self._forget(reply.key)

    def _end_all(self, keys: Iterable[Key], error: MillraceError) -> None:
        for key in keys:
            self._say(failed(key, error, self._withdraw(key)))

    def _withdraw(self, key: Key) -> Spent | None:
        """Take a request back from wherever it is. What it has used, where it had begun."""
        model, is_handed = self._live[key], key in self._handed
        self._forget(key)
        model.intake.remove(key)
        return model.runtime.cancel(key) if is_handed and model.runtime is not None else None

    def _forget(self, key: Key) -> None:
        del self._live[key]
        self._handed.discard(key)
        self._quarantine.remove(key)
        self._deadlines.remove(key)
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
        """Whoever is told of an outcome in this turn and asks when the loop is at rest sees it in the figures."""
        now = self._clock()
        if now - self._published_seconds >= _PUBLISH_SECONDS or self._wait_seconds() != 0.0:
            self._published_seconds = now
            self.hello = msgspec.structs.replace(self.hello, models=self._registry.statuses(), stats=self._stats(now))

    def _stats(self, now: float) -> EngineStats:
        runtimes = [model.runtime for model in self._turns if model.runtime is not None]
        return self._statistics.collect(
            [runtime.gauges() for runtime in runtimes],
            sum(runtime.num_slots for runtime in runtimes),
            sum(len(model.intake) for model in self._turns) + len(self._quarantine),
            now,
        )


def _too_late() -> Interrupted:
    error = Interrupted("timeout_seconds passed before the request had ended", code="deadline_exceeded")
    error.is_retryable = False
    return error


def _cancelled() -> Interrupted:
    error = Interrupted("cancelled by the client", code="cancelled")
    error.is_retryable = False
    return error
