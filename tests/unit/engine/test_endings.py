"""Cancels and deadlines over a real model: in every state they end a request with one outcome at the next step."""

import queue

import pytest

from core.protocol import Cancel, ClientMessage, EngineMessage, EngineStats, Failed, Finished, Generate, Hello, Sampling
from engine.link import Received
from engine.registry import Registry
from engine.runtime import Runtime
from engine.service import Event, Service
from engine.telemetry.instruments import Instruments
from tests.engine_harness import Harness, random_prompt
from tests.engine_models import tiny_model

CLIENT = b"c"
LONG = Sampling(temperature=0, max_tokens=40, ignore_eos=True)
SHORT = Sampling(temperature=0, max_tokens=4, ignore_eos=True)


class Scene:
    """One tiny model behind the main loop, which loads when `ready` is called, and a clock that stands still."""

    def __init__(self, **options: int) -> None:
        self.now = 0.0
        self.sent: list[EngineMessage] = []
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.generator = Harness(tiny_model("llama"), None, **options).generator
        self.generator._clock = self.generator._answers._clock = lambda: self.now
        self.registry = Registry({"tiny": ""}, self.load, self.inbox.put, lambda: self.now)
        self.loaded: queue.SimpleQueue[None] = queue.SimpleQueue()
        instruments = Instruments(lambda: self.now)
        hello = Hello("boot", "cpu", 64, [], EngineStats())
        self.service = Service(self.registry, self.inbox, lambda _, m: self.sent.extend(m), hello, instruments)

    def load(self, _name: str, _source: str) -> Runtime:
        self.loaded.get()
        return self.generator

    def ready(self) -> None:
        """The model is there from the next turn on."""
        self.registry.start_loading(self.registry.models["tiny"])
        self.loaded.put(None)
        while self.registry.models["tiny"].runtime is None:
            self.service.turn()

    def post(self, *messages: ClientMessage) -> None:
        self.inbox.put(Received(CLIENT, list(messages), self.now))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            if not self.inbox.empty() or self.service._wait_seconds() == 0.0:
                self.service.turn()

    def run(self) -> None:
        """Until nothing is left to do now."""
        while self.service._wait_seconds() == 0.0:
            self.service.turn()

    def outcomes(self) -> dict[str, str]:
        """Code or finish reason by id. Each came once."""
        ended = [message for message in self.sent if isinstance(message, Finished | Failed)]
        assert len({message.id for message in ended}) == len(ended)
        return {m.id: m.code if isinstance(m, Failed) else m.finish_reason for m in ended}


def ask(name: str, sampling: Sampling = SHORT, *, length: int = 6, priority: int = 0, **more: float) -> Generate:
    prompt = random_prompt(length, seed=len(name))
    return Generate(name, "tiny", sampling, token_ids=prompt, priority=priority, timeout_seconds=more.get("timeout"))


def end(scene: Scene, how: str, name: str) -> str:
    """The code that it must end with."""
    if how == "cancel":
        scene.post(Cancel([name]))
        return "cancelled"
    scene.now = 10.0
    return "deadline_exceeded"


both = pytest.mark.parametrize("how", ["cancel", "deadline"])


@both
def test_while_its_model_loads(how: str) -> None:
    # Given a request for a model that is being loaded
    scene = Scene()
    scene.post(ask("x", timeout=9.0), ask("other"))
    scene.turn()
    # When it ends, and then the model comes
    code = end(scene, how, "x")
    scene.turn()
    assert scene.outcomes() == {"x": code}
    scene.ready()
    scene.run()
    # Then only the other one is answered
    assert scene.outcomes() == {"x": code, "other": "length"}


@both
@pytest.mark.parametrize("state", ["waiting", "in its prompt", "answering"])
def test_while_it_waits_or_runs(how: str, state: str) -> None:
    # Given a request in that state beside another one
    scene = Scene(num_slots=1 if state == "waiting" else 2, prefill_tokens=16)
    scene.ready()
    scene.post(ask("other", LONG))
    scene.turn(2)
    scene.post(ask("x", LONG, length=60 if state == "in its prompt" else 6, timeout=9.0))
    scene.turn(2 if state == "answering" else 1)
    assert scene.outcomes() == {}
    # When it ends
    code = end(scene, how, "x")
    scene.turn()
    # Then it has its outcome after one turn, and the other one goes on to its end
    assert scene.outcomes() == {"x": code}
    scene.run()
    assert scene.outcomes() == {"x": code, "other": "length"}
    assert scene.generator.gauges().num_running == 0


@both
def test_while_it_has_given_way_to_another(how: str) -> None:
    # Given one slot, and a request that lost it to somebody who waits
    scene = Scene(num_slots=1)
    scene.ready()
    scene.post(ask("x", LONG, timeout=9.0))
    scene.turn(3)
    scene.post(ask("urgent", LONG, priority=10))
    scene.turn(2)
    assert scene.generator.gauges().num_preemptions_total == 1
    # When it ends
    code = end(scene, how, "x")
    scene.turn()
    # Then it has its outcome after one turn
    assert scene.outcomes() == {"x": code}
    scene.run()
    assert scene.outcomes() == {"x": code, "urgent": "length"}


def test_a_model_that_holds_bulk_work_finishes_what_runs_and_begins_what_is_urgent() -> None:
    # Given a bulk request that runs and one that waits when bulk work is held
    scene = Scene(num_slots=2)
    scene.ready()
    scene.post(ask("runs", LONG))
    scene.turn(2)
    scene.generator.hold_bulk(True)
    scene.post(ask("bulk"), ask("urgent", priority=10))
    # When everything has been done that may be done
    scene.run()
    # Then the held one has not begun, and nothing spins for it
    assert scene.outcomes() == {"runs": "length", "urgent": "length"}
    assert (scene.generator.gauges().num_waiting, scene.generator.wait_seconds()) == (1, None)
    # And it runs when it may
    scene.generator.hold_bulk(False)
    scene.run()
    assert scene.outcomes() == {"runs": "length", "urgent": "length", "bulk": "length"}


def test_the_figures_of_a_model_tell_its_steps_apart() -> None:
    # Given a prompt of three pieces and an answer of four tokens, beside one that decodes
    scene = Scene(num_slots=2, prefill_tokens=16)
    scene.ready()
    scene.post(ask("first", LONG))
    scene.turn(2)
    scene.post(ask("second", length=40))
    scene.run()
    # Then there were steps of all kinds, with one row and with two
    steps = scene.generator.gauges().steps
    assert min(phase.num_steps for phase in (steps.prefill, steps.decode, steps.mixed)) > 0
    assert len(steps.rows_histogram) == 2
    assert sum(steps.rows_histogram) == sum(p.num_steps for p in (steps.prefill, steps.decode, steps.mixed))
