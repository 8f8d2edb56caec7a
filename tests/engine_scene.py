"""The main loop of an engine over models that do as they are told, turn by turn, on a clock that stands still."""

import queue
from typing import Any

from core.protocol import (
    ANYTHING,
    ClientMessage,
    DeviceReading,
    EngineMessage,
    EngineStats,
    Failed,
    Finished,
    Generate,
    Hello,
    Spent,
    Timing,
    Usage,
)
from engine.link import Received
from engine.registry import Registry
from engine.runtime import Arrival, Gauges, Key, Reply, Runtime
from engine.service import Event, Service
from engine.telemetry.instruments import Instruments
from engine.telemetry.sensor import DeviceMonitor
from engine.telemetry.throttle import Throttle

DEADLINE_SECONDS = 30.0
LIMIT_CELSIUS = 80.0


class Stepper:
    """A runtime that answers a request at its third step and writes down what happens. What it holds back has not begun
    when bulk work is held."""

    kind: str = ANYTHING
    context_tokens = 0
    weight_bytes = 0
    num_slots = 4
    step_seconds = 0.0

    def __init__(self, name: str, journal: list[str], clock: "Clock") -> None:
        self.name = name
        self.journal = journal
        self.clock = clock
        self.steps_left: dict[Key, int] = {}
        self.is_bulk_held = False

    def submit(self, arrival: Arrival) -> None:
        if isinstance(arrival.request, Generate) and arrival.request.text == "odd":
            raise ValueError("an odd request")
        self.clock.now += 0.002  # tokenization takes its time
        self.journal.append(f"{self.name} takes {arrival.request.id}")
        self.steps_left[arrival.key] = 3

    def cancel(self, key: Key) -> Spent | None:
        is_known = self.steps_left.pop(key, None) is not None
        return Spent(prompt_tokens=1) if is_known else None

    def hold_bulk(self, is_held: bool) -> None:
        self.is_bulk_held = is_held

    def wait_seconds(self) -> float | None:
        return 0.0 if self.steps_left else None

    def step(self) -> list[Reply]:
        self.journal.append(f"{self.name} steps")
        self.clock.now += self.step_seconds
        self.steps_left = {key: left - 1 for key, left in self.steps_left.items()}
        done = [key for key, left in self.steps_left.items() if left == 0]
        for key in done:
            del self.steps_left[key]
        return [Reply(key, Finished(key[1], "done", "stop", Usage(1, 1), Timing(0, 0, 0))) for key in done]

    def gauges(self) -> Gauges:
        return Gauges(num_running=len(self.steps_left), num_steps_total=1)

    def close(self) -> None:
        self.journal.append(f"{self.name} closes")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Thermometer:
    celsius: float | None = 50.0

    def read(self) -> DeviceReading:
        return DeviceReading(temperature_celsius=self.celsius)


class Scene:
    """Models a and b, loaded, and `bad`, which cannot be."""

    def __init__(self, num_credits: int = 100) -> None:
        self.journal: list[str] = []
        self.clock = Clock()
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.sent: dict[bytes, list[EngineMessage]] = {}
        self.num_loads = 0
        self.registry = Registry({"a": "", "b": "", "bad": ""}, self.load, self.inbox.put, self.clock)
        hello = Hello("boot", "cpu", num_credits, [], EngineStats())
        self.thermometer = Thermometer()
        self.monitor = DeviceMonitor(self.thermometer)
        instruments = Instruments(self.clock, throttle=Throttle(LIMIT_CELSIUS), monitor=self.monitor)
        self.service = Service(self.registry, self.inbox, self.send, hello, instruments)
        for name in ("a", "b"):
            self.registry.start_loading(self.registry.models[name])
            self.registry.settle(self.inbox.get(timeout=DEADLINE_SECONDS))  # type: ignore[arg-type]

    def load(self, name: str, _source: str) -> Runtime:
        self.num_loads += 1
        if name == "bad":
            raise OSError("no such weights")
        return Stepper(name, self.journal, self.clock)

    def send(self, client: bytes, messages: list[EngineMessage]) -> None:
        self.sent.setdefault(client, []).extend(messages)

    def post(self, *messages: ClientMessage, client: bytes = b"c") -> None:
        self.inbox.put(Received(client, list(messages), self.clock.now))

    def turn(self, times: int = 1) -> None:
        """At most so many: a turn without anything to do would wait for a message, or for time to pass."""
        for _ in range(times):
            if not self.inbox.empty() or self.service._wait_seconds() == 0.0:
                self.service.turn()

    def heat(self, celsius: float | None) -> None:
        self.thermometer.celsius = celsius
        self.monitor.look()

    def close(self) -> None:
        self.registry.close()

    def failures(self, client: bytes = b"c") -> dict[str, str]:
        return {message.id: message.code for message in self.sent.get(client, []) if isinstance(message, Failed)}

    def spent(self, client: bytes = b"c") -> dict[str, Spent]:
        failures = (message for message in self.sent.get(client, []) if isinstance(message, Failed))
        return {message.id: message.spent for message in failures if message.spent is not None}

    def finished(self, client: bytes = b"c") -> list[str]:
        return [message.id for message in self.sent.get(client, []) if isinstance(message, Finished)]


def ask(name: str, model: str = "a", **more: Any) -> Generate:
    return Generate(name, model, text=more.pop("text", "x"), **more)
