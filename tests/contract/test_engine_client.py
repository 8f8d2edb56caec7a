"""The engine client against a real engine process with the null model: answers, credits, cancelling, crashes."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from core.protocol import Failed, Finished, Generate
from tests.engine_process import engine_process
from tests.engine_wire import lossy_wire
from tests.polling import until
from workers.engine_client import Answer, EngineClient, probe

DEADLINE_SECONDS = 60.0
SLOTS = 4
CREDITS = 2 * SLOTS


class Engine:
    """An engine process that can be killed and started again on the same endpoint."""

    def __init__(self, endpoint: str, stack: ExitStack) -> None:
        self.endpoint = endpoint
        self._stack = stack
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        models = ("--model", "quick=null:", "--model", "slow=null:0.2", "--model", "never=null:3600")
        preload = ("--preload", "quick", "--preload", "slow", "--preload", "never")
        return self._stack.enter_context(engine_process(self.endpoint, *models, *preload, "--slots", str(SLOTS)))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.process = self.start()

    def restart_in_order(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(DEADLINE_SECONDS) == 0
        self.process = self.start()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with ExitStack() as stack:
        yield Engine(f"ipc://{tmp_path}/engine.sock", stack)


@pytest.fixture
def client(engine: Engine) -> Iterator[EngineClient]:
    client = EngineClient(engine.endpoint)
    client.start()
    assert client.wait_ready(DEADLINE_SECONDS) is not None
    yield client
    client.close()


def requests(count: int, model: str, prefix: str = "request") -> list[Generate]:
    return [Generate(f"{prefix}-{index}", model, text=f"prompt {index}") for index in range(count)]


def take(answers: "SimpleQueue[Answer]", count: int) -> list[Answer]:
    return [answers.get(timeout=DEADLINE_SECONDS) for _ in range(count)]


def test_every_request_gets_its_one_answer_however_many_there_are(client: EngineClient) -> None:
    # Given many more requests than credits
    answers: SimpleQueue[Answer] = SimpleQueue()
    # When
    client.submit(requests(2000, "quick"), answers.put)
    # Then
    ids = [answer.id for answer in take(answers, 2000)]
    assert sorted(ids) == sorted(request.id for request in requests(2000, "quick"))
    with pytest.raises(Empty):
        answers.get_nowait()


def test_no_more_is_in_flight_than_the_engine_grants(engine: Engine, client: EngineClient) -> None:
    # Given
    answers: SimpleQueue[Answer] = SimpleQueue()
    # When
    client.submit(requests(100, "never"), answers.put)
    # Then the engine holds what it granted, and not more of it later
    until(lambda: num_waiting(engine) == CREDITS)
    assert client.hello is not None
    assert client.hello.credits == CREDITS
    assert num_waiting(engine) == CREDITS


def num_waiting(engine: Engine) -> int:
    hello = probe(engine.endpoint)
    return -1 if hello is None else hello.stats.num_running + hello.stats.num_waiting


def test_a_cancelled_request_frees_its_credit_and_is_heard_of_no_more(client: EngineClient) -> None:
    # Given all credits taken by requests that never end
    stuck: SimpleQueue[Answer] = SimpleQueue()
    client.submit(requests(CREDITS, "never"), stuck.put)
    answers: SimpleQueue[Answer] = SimpleQueue()
    client.submit(requests(5, "quick", "late"), answers.put)
    # When
    client.cancel([request.id for request in requests(CREDITS, "never")])
    # Then
    assert all(isinstance(answer, Finished) for answer in take(answers, 5))
    assert stuck.empty()


def test_requests_that_are_withdrawn_are_heard_of_once_more(client: EngineClient) -> None:
    # Given all credits taken, and one that waits for its own
    answers: SimpleQueue[Answer] = SimpleQueue()
    asked = requests(CREDITS + 1, "never")
    client.submit(asked, answers.put)
    # When
    client.withdraw([request.id for request in asked])
    # Then
    heard = [answer for answer in take(answers, CREDITS + 1) if isinstance(answer, Failed)]
    assert {answer.id: answer.code for answer in heard} == {request.id: "cancelled" for request in asked}


def test_requests_in_flight_fail_as_lost_when_the_engine_is_restarted(engine: Engine, client: EngineClient) -> None:
    # Given
    answers: SimpleQueue[Answer] = SimpleQueue()
    client.submit(requests(3, "never"), answers.put)
    until(lambda: num_waiting(engine) == 3)
    # When
    engine.restart()
    # Then
    lost = take(answers, 3)
    assert {answer.code for answer in lost if isinstance(answer, Failed)} == {"engine_lost"}
    # And the client goes on with the new one
    assert client.wait_ready(DEADLINE_SECONDS) is not None
    client.submit(requests(3, "quick", "again"), answers.put)
    assert all(isinstance(answer, Finished) for answer in take(answers, 3))


def test_an_engine_that_ends_in_order_is_not_taken_for_one_that_died(engine: Engine, client: EngineClient) -> None:
    # Given requests in flight, and others that are submitted as soon as these are heard of
    answers: SimpleQueue[Answer] = SimpleQueue()
    later: SimpleQueue[Answer] = SimpleQueue()
    follow = iter(requests(CREDITS, "quick", "later"))

    def take_and_follow(answer: Answer) -> None:
        answers.put(answer)
        client.submit([next(follow)], later.put)

    client.submit(requests(CREDITS, "never"), take_and_follow)
    until(lambda: num_waiting(engine) == CREDITS)
    # When
    engine.restart_in_order()
    # Then nothing was sent to the one that was about to end
    interrupted = take(answers, CREDITS)
    assert {answer.code for answer in interrupted if isinstance(answer, Failed)} == {"interrupted"}
    assert all(isinstance(answer, Finished) for answer in take(later, CREDITS))


def test_what_reached_an_engine_after_it_was_given_up_takes_no_credits_there(tmp_path: Path, engine: Engine) -> None:
    # Given requests that are on their way while one engine dies and the next begins
    endpoint = f"ipc://{tmp_path}/wire"
    answers: SimpleQueue[Answer] = SimpleQueue()
    with lossy_wire(endpoint, engine.endpoint) as wire:
        client = EngineClient(endpoint)
        client.start()
        assert client.wait_ready(DEADLINE_SECONDS) is not None
        engine.kill()
        num_before = len(wire.up)
        client.submit(requests(CREDITS, "never"), answers.put)
        until(lambda: sum(isinstance(message, Generate) for message in wire.up[num_before:]) == CREDITS)
        # When
        engine.process = engine.start()
        assert {answer.code for answer in take(answers, CREDITS) if isinstance(answer, Failed)} == {"engine_lost"}
        assert client.wait_ready(DEADLINE_SECONDS) is not None
        client.submit(requests(CREDITS, "quick", "again"), answers.put)
        # Then
        assert all(isinstance(answer, Finished) for answer in take(answers, CREDITS))
        client.close()


def test_requests_submitted_while_the_engine_is_away_run_when_it_is_back(engine: Engine, client: EngineClient) -> None:
    # Given
    engine.kill()
    answers: SimpleQueue[Answer] = SimpleQueue()
    client.submit(requests(5, "slow"), answers.put)
    # When
    engine.restart()
    # Then those that the dead engine may have got say so, the others are answered: each has one answer
    outcomes = take(answers, 5)
    assert len({answer.id for answer in outcomes}) == 5


def test_an_engine_that_is_not_there_is_not_ready(tmp_path: Path) -> None:
    # Given
    client = EngineClient(f"ipc://{tmp_path}/nobody.sock")
    client.start()
    # When / Then
    assert client.wait_ready(0.1) is None
    assert probe(f"ipc://{tmp_path}/nobody.sock", 0.1) is None
    client.close()
