"""An engine whose step never ends, under the real supervisor: it is ended, started again, and the others run again."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from core.protocol import Failed, Finished, Generate, Hello
from core.settings import Settings
from tests.polling import until
from workers import agent
from workers.devices import Device
from workers.engine_client import Answer, EngineClient
from workers.instance import Instance
from workers.part import Backoff
from workers.supervisor import Supervisor

DEADLINE_SECONDS = 60.0
CPU = Device("cpu", "CPU")


class Node:
    """An engine with a model that hangs at a word, its supervisor, and a client."""

    def __init__(self, settings: Settings) -> None:
        self.lines: list[str] = []
        self.instance = Instance.of(settings)
        self.instance.prepare()
        self.supervisor = Supervisor(self.instance, self.lines.append, backoff=Backoff(base_seconds=0.01))
        self.supervisor.launch([agent.engine_part(settings, CPU, ())])
        self.supervisor.wait_ready()
        self.client = EngineClient(agent.engine_endpoint(settings, CPU))
        self.client.start()
        assert self.client.wait_ready(DEADLINE_SECONDS) is not None
        self.answers: SimpleQueue[Answer] = SimpleQueue()

    def ask(self, *prompts: str) -> None:
        self.client.submit([Generate(prompt, "m", text=prompt) for prompt in prompts], self.answers.put)

    def answer(self) -> Answer:
        return self.answers.get(timeout=DEADLINE_SECONDS)

    def hello(self) -> Hello:
        hello = self.client.hello
        assert hello is not None
        return hello

    def until(self, holds: Callable[[], object]) -> None:
        def look() -> object:
            self.supervisor.tick()
            return holds()

        until(look)

    def close(self) -> None:
        self.client.close()
        self.supervisor.request_stop()
        self.supervisor.request_stop()
        self.supervisor.stop_all()
        shutil.rmtree(self.instance.run_path)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(Settings(data_dir=str(tmp_path), models="m=null:0~hang", engine_max_step_seconds=5.0))
    yield node
    node.close()


def test_an_engine_that_hangs_says_so_is_ended_and_comes_back_for_the_others(node: Node) -> None:
    # Given an engine that answers
    node.ask("before")
    assert isinstance(node.answer(), Finished)
    boot = node.hello().boot_id
    # When a step does not end, while others wait
    node.ask("hang", "waits")
    # Then its heartbeats go on and tell how old the step is
    node.until(lambda: node.hello().stats.step_age_seconds > 2.0)
    assert node.hello().boot_id == boot
    # And it is ended, and what was in flight may run again
    node.until(lambda: node.answers.qsize() == 2)
    assert {answer.code for answer in (node.answer(), node.answer()) if isinstance(answer, Failed)} == {"engine_lost"}
    node.until(lambda: (hello := node.client.hello) is not None and hello.boot_id != boot)
    assert any("engine-cpu ended with SIGALRM; it is started again" in line for line in node.lines)
    log = node.instance.log_path("engine-cpu").read_text()
    assert "CRITICAL engine.watchdog: one step has taken" in log
    assert "in _answer" in log
    # And the innocent one is answered
    node.client.submit([Generate("waits again", "m", text="waits")], node.answers.put)
    assert isinstance(node.answer(), Finished)
