"""The main loop, turn by turn, over models that do as they are told."""

import queue
from typing import Any

import pytest

from core.errors import EngineLost
from core.protocol import (
    Cancel,
    ClientMessage,
    EngineMessage,
    EngineStats,
    Failed,
    Finished,
    Generate,
    Hello,
    Load,
    Timing,
    Unload,
    Usage,
)
from engine.link import ClientLost, LinkBroken, Received
from engine.registry import Registry
from engine.runtime import Arrival, Gauges, Key, Reply, Runtime
from engine.service import Event, Service, Stop

DEADLINE_SECONDS = 30.0


class Stepper:
    """A runtime that answers a request at its third step and writes down what happens."""

    context_tokens = 0
    weight_bytes = 0
    num_slots = 4

    def __init__(self, name: str, journal: list[str], clock: "Clock") -> None:
        self.name = name
        self.journal = journal
        self.clock = clock
        self.steps_left: dict[Key, int] = {}

    def submit(self, arrival: Arrival) -> None:
        if arrival.request.text == "odd":
            raise ValueError("an odd request")
        self.clock.now += 0.002  # tokenization takes its time
        self.journal.append(f"{self.name} takes {arrival.request.id}")
        self.steps_left[arrival.key] = 3

    def cancel(self, key: Key) -> None:
        self.steps_left.pop(key, None)

    def wait_seconds(self) -> float | None:
        return 0.0 if self.steps_left else None

    def step(self) -> list[Reply]:
        self.journal.append(f"{self.name} steps")
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
        self.service = Service(self.registry, self.inbox, self.send, hello, self.clock)
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
        """At most so many: a turn without anything to do would wait for a message."""
        for _ in range(times):
            if not self.inbox.empty() or self.service._wait_seconds() is not None:
                self.service.turn()

    def failures(self, client: bytes = b"c") -> dict[str, str]:
        return {message.id: message.code for message in self.sent.get(client, []) if isinstance(message, Failed)}

    def finished(self, client: bytes = b"c") -> list[str]:
        return [message.id for message in self.sent.get(client, []) if isinstance(message, Finished)]


def ask(name: str, model: str = "a", **more: Any) -> Generate:
    return Generate(name, model, text=more.pop("text", "x"), **more)


def test_models_with_work_step_in_turn() -> None:
    scene = Scene()
    scene.post(ask("1", "a"), ask("2", "b"))
    scene.turn(6)
    assert [entry for entry in scene.journal if entry.endswith("steps")] == ["a steps", "b steps"] * 3
    assert scene.finished() == ["1", "2"]


def test_tokenization_pauses_for_steps_and_lets_the_urgent_go_first() -> None:
    # Given ten requests whose preparation takes 2 ms each, the last of which is urgent
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(9)), ask("urgent", priority=10))
    # When two turns pass
    scene.turn(2)
    # Then each prepared what 5 ms allow and stepped, the urgent one first
    takes = ["a takes urgent", "a takes 0", "a takes 1", "a steps", "a takes 2", "a takes 3", "a takes 4", "a steps"]
    assert scene.journal == takes


def test_answers_of_one_turn_to_one_client_travel_together() -> None:
    scene = Scene()
    frames: list[tuple[bytes, int]] = []
    scene.service._send = lambda client, messages: frames.append((client, len(messages)))
    scene.post(ask("1"), ask("2"))
    scene.post(ask("1"), client=b"d")
    scene.turn(3)
    assert sorted(frames) == [(b"c", 2), (b"d", 1)]


def test_credits_bound_what_one_client_has_in_flight_and_come_back() -> None:
    scene = Scene(num_credits=2)
    scene.post(ask("1"), ask("2"), ask("3"))
    scene.post(ask("1"), client=b"d")
    scene.turn(3)
    assert scene.failures() == {"3": "overloaded"}
    assert (scene.finished(), scene.finished(b"d")) == (["1", "2"], ["1"])
    scene.post(ask("4"), ask("5"))
    scene.turn(3)
    assert scene.finished() == ["1", "2", "4", "5"]


def test_cancel_reaches_requests_that_wait_and_requests_that_run() -> None:
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(5)))  # three are prepared in the first turn, two wait
    scene.turn()
    scene.post(Cancel(["0", "4", "unknown"]))
    scene.turn(5)
    # the client of an unknown one may still count it as in flight, so it hears the same
    assert scene.failures() == {"0": "cancelled", "4": "cancelled", "unknown": "cancelled"}
    assert scene.finished() == ["1", "2", "3"]


def test_a_lost_client_takes_its_requests_along_and_nobody_elses() -> None:
    scene = Scene()
    scene.post(ask("1"), ask("2", "b"))
    scene.post(ask("1"), client=b"d")
    scene.turn()
    scene.inbox.put(ClientLost(b"c"))
    scene.turn(3)
    assert b"c" not in scene.sent
    assert scene.finished(b"d") == ["1"]


def test_a_request_that_breaks_its_preparation_fails_alone() -> None:
    scene = Scene()
    scene.post(ask("odd", text="odd"), ask("fine"))
    scene.turn(3)
    assert scene.failures() == {"odd": "model_failure"}
    assert scene.finished() == ["fine"]


def test_a_model_that_cannot_load_fails_who_waits_at_once_and_is_not_tried_for_everyone() -> None:
    # Given a model whose weights are missing
    scene = Scene()
    scene.post(ask("1", "bad"), ask("2", "bad"), ask("good"))
    while len(scene.failures()) < 2:
        scene.service.turn()  # waits for the loading thread
    # When more requests come soon after
    scene.post(ask("3", "bad"))
    scene.turn(3)
    # Then they fail without another try, and others are served; `Load` tries again at once
    assert scene.failures() == dict.fromkeys("123", "model_not_loaded")
    assert scene.num_loads == 3
    assert scene.finished() == ["good"]
    scene.post(Load("bad"))
    scene.turn()
    assert scene.registry.models["bad"].state == "loading"


def test_unload_fails_what_the_model_has_and_closes_it() -> None:
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(4)), ask("other", "b"))
    scene.turn()
    scene.post(Unload("a"), Unload("nobody"))
    scene.turn(3)
    assert scene.failures() == dict.fromkeys("0123", "model_unloaded")
    assert scene.finished() == ["other"]
    assert "a closes" in scene.journal


def test_stop_fails_all_that_is_in_flight_as_retryable() -> None:
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(5)))
    scene.turn()
    scene.inbox.put(Stop())
    scene.service.run()
    assert scene.failures() == dict.fromkeys("01234", "interrupted")
    assert all(message.is_retryable for message in scene.sent[b"c"] if isinstance(message, Failed))


def test_a_broken_link_ends_the_service() -> None:
    scene = Scene()
    scene.inbox.put(LinkBroken(EngineLost("deaf")))
    with pytest.raises(EngineLost):
        scene.service.run()


def test_the_greeting_shows_models_and_what_they_do() -> None:
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(5)))
    scene.turn()
    hello = scene.service.hello
    assert [(model.name, model.state) for model in hello.models] == [
        ("a", "ready"),
        ("b", "ready"),
        ("bad", "unloaded"),
    ]
    assert (hello.stats.num_running, hello.stats.num_waiting, hello.stats.num_slots) == (3, 2, 8)
