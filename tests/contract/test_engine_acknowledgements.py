"""Outcomes over a wire that loses frames, between the real client and a real engine; and beside an earlier release."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from core.protocol import Ack, Confirm, Embed, Embedded, EngineFrame, Failed, Finished, Generate, Ping, Sampling
from tests.engine_process import engine_client, engine_process
from tests.engine_wire import Frame, Wire, engine_of_old, lossy_wire
from tests.polling import until
from workers.engine_client import Answer, EngineClient

DEADLINE_SECONDS = 60.0
SLOTS = 4


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    endpoint = f"ipc://{tmp_path_factory.mktemp('engine')}/socket"
    models = ("--model", "quick=null:", "--model", "never=null:3600", "--preload", "quick", "--preload", "never")
    with engine_process(endpoint, *models, "--slots", str(SLOTS)):
        yield endpoint


@contextmanager
def running(endpoint: str) -> Iterator[EngineClient]:
    client = EngineClient(endpoint)
    client.start()
    assert client.wait_ready(DEADLINE_SECONDS) is not None
    yield client
    client.close()


@contextmanager
def client_behind(
    tmp_path: Path, engine: str, loses: Callable[[Frame], bool] = lambda _: False
) -> Iterator[tuple[EngineClient, Wire]]:
    endpoint = f"ipc://{tmp_path}/wire"
    with lossy_wire(endpoint, engine, loses) as wire, running(endpoint) as client:
        yield client, wire


def requests(count: int, model: str = "quick", prefix: str = "request") -> list[Generate]:
    return [Generate(f"{prefix}-{index}", model, text=f"prompt {index}") for index in range(count)]


def take(answers: "SimpleQueue[Answer]", count: int) -> list[Answer]:
    return [answers.get(timeout=DEADLINE_SECONDS) for _ in range(count)]


def has_outcome(frame: Frame) -> bool:
    return isinstance(frame, EngineFrame) and any(isinstance(message, Finished) for message in frame.messages)


class Once:
    """Says yes to the first frame that is wanted."""

    def __init__(self, is_wanted: Callable[[Frame], bool]) -> None:
        self._is_wanted = is_wanted
        self.has_happened = False

    def __call__(self, frame: Frame) -> bool:
        if self.has_happened or not self._is_wanted(frame):
            return False
        self.has_happened = True
        return True


def test_outcomes_that_got_lost_come_again(tmp_path: Path, engine: str) -> None:
    # Given a wire that loses the first frame with outcomes
    loses = Once(has_outcome)
    answers: SimpleQueue[Answer] = SimpleQueue()
    with client_behind(tmp_path, engine, loses) as (client, wire):
        # When more is asked than the client may have in flight
        client.submit(requests(50), answers.put)
        # Then each has its one outcome, though the engine had to send some again
        assert {answer.id for answer in take(answers, 50)} == {request.id for request in requests(50)}
        assert loses.has_happened
        until(lambda: {i for m in wire.up if isinstance(m, Ack) for i in m.ids} == {r.id for r in requests(50)})
    with pytest.raises(Empty):
        answers.get_nowait()


def test_outcomes_whose_acknowledgement_got_lost_come_again_and_are_told_once(tmp_path: Path, engine: str) -> None:
    # Given a wire that loses the first acknowledgement
    loses = Once(lambda frame: any(isinstance(message, Ack) and message.ids for message in frame.messages))
    answers: SimpleQueue[Answer] = SimpleQueue()
    with client_behind(tmp_path, engine, loses) as (client, wire):
        # When one thing is asked
        client.submit(requests(1), answers.put)
        # Then its outcome comes twice, is acknowledged twice, and told once
        until(lambda: sum(isinstance(message, Finished) for message in wire.down) == 2)
        until(lambda: [message.ids for message in wire.up if isinstance(message, Ack) and message.ids] != [])
        assert isinstance(answers.get(timeout=DEADLINE_SECONDS), Finished)
        until(lambda: sum("request-0" in message.ids for message in wire.up if isinstance(message, Ack)) == 2)
    assert answers.empty()


def test_a_request_that_got_lost_on_its_way_may_run_again(tmp_path: Path, engine: str) -> None:
    # Given a wire that loses the first frame with requests, and one request that takes long
    loses = Once(lambda frame: any(isinstance(message, Generate) for message in frame.messages))
    answers: SimpleQueue[Answer] = SimpleQueue()
    with client_behind(tmp_path, engine, loses) as (client, _):
        client.submit(requests(3), answers.put)
        until(lambda: loses.has_happened)
        client.submit(requests(1, "never", "long"), answers.put)
        # When the client has waited long enough to ask
        lost = [answer for answer in take(answers, 3) if isinstance(answer, Failed)]
        # Then it hears that they never arrived, and nothing of the one that is known
        assert [(failure.code, failure.is_retryable) for failure in lost] == [("not_received", True)] * 3
        assert {failure.id for failure in lost} == {request.id for request in requests(3)}
        assert answers.empty()


def test_over_a_wire_that_loses_a_third_of_all_outcomes_and_acknowledgements_each_request_ends_once(
    tmp_path: Path, engine: str
) -> None:
    # Given such a wire
    dice = random.Random(5)
    answers: SimpleQueue[Answer] = SimpleQueue()

    def loses(frame: Frame) -> bool:
        only_acks = all(isinstance(message, Ack | Ping) for message in frame.messages)
        return (has_outcome(frame) or only_acks) and dice.random() < 1 / 3

    with client_behind(tmp_path, engine, loses) as (client, _):
        # When prompts and texts are sent
        client.submit([*requests(60), Embed("texts", "quick", texts=["a", "b"])], answers.put)
        outcomes = take(answers, 61)
    # Then each has its one outcome
    assert len({answer.id for answer in outcomes}) == 61
    assert [len(answer.embeddings) for answer in outcomes if isinstance(answer, Embedded)] == [2]
    assert answers.empty()


def test_a_client_that_does_not_acknowledge_is_served_as_ever(engine: str) -> None:
    # Given a client of an earlier release
    with engine_client(engine) as client:
        client.wait_until_ready("quick")
        # When it asks
        client.ask(*requests(3))
        # Then after heartbeats enough to send everything again it has one outcome for each
        for _ in range(4):
            client.received = [message for message in client.received if isinstance(message, Finished)]
            client.wait_for(lambda message: not isinstance(message, Finished))
        assert sorted(message.id for message in client.received if isinstance(message, Finished)) == [
            request.id for request in requests(3)
        ]


def test_an_engine_that_cannot_read_acknowledgements_gets_none(tmp_path: Path) -> None:
    # Given an engine of an earlier release
    answers: SimpleQueue[Answer] = SimpleQueue()
    endpoint = f"ipc://{tmp_path}/old"
    with engine_of_old(endpoint) as heard, running(endpoint) as client:
        # When it ends requests
        client.submit(requests(9, "m"), answers.put)
        take(answers, 9)
        until(lambda: sum(isinstance(message, Ping) for message in heard) > 2)
    # Then it hears no acknowledgement, and no question
    assert not any(isinstance(message, Ack | Confirm) for message in heard)


def test_what_an_engine_of_an_earlier_release_would_skip_is_refused_here(tmp_path: Path) -> None:
    # Given an engine that knows neither JSON schemas nor requests that run alone
    answers: SimpleQueue[Answer] = SimpleQueue()
    endpoint = f"ipc://{tmp_path}/engine"
    with engine_of_old(endpoint) as heard, running(endpoint) as client:
        # When requests of all kinds are submitted
        asking = [
            Generate("plain", "m", Sampling(temperature=0.5), text="x"),
            Generate("schema", "m", Sampling(json_schema="{}"), text="x"),
            Generate("alone", "m", text="x", is_alone=True),
        ]
        client.submit(asking, answers.put)
        outcomes = {answer.id: answer for answer in take(answers, 3)}
    # Then it is asked what it understands, and the others fail with what is missing, for another try elsewhere
    assert [message.id for message in heard if isinstance(message, Generate)] == ["plain"]
    for name, field in (("schema", "Sampling.json_schema"), ("alone", "Generate.is_alone")):
        outcome = outcomes[name]
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.is_retryable) == ("engine_outdated", True)
        assert field in outcome.message


def test_a_client_that_was_given_up_runs_again_what_it_had_in_flight(tmp_path: Path) -> None:
    # Given requests in flight
    session = [1]
    answers: SimpleQueue[Answer] = SimpleQueue()
    endpoint = f"ipc://{tmp_path}/engine"
    with engine_of_old(endpoint, lambda: session[0]) as heard, running(endpoint) as client:
        client.submit(requests(3, "silent"), answers.put)
        until(lambda: any(isinstance(message, Generate) for message in heard))
        # When the engine greets as if it had never seen the client
        session[0] = 2
        # Then they are lost
        assert {answer.code for answer in take(answers, 3) if isinstance(answer, Failed)} == {"interrupted"}


def test_cancelling_what_has_just_ended_ends_it_once(tmp_path: Path, engine: str) -> None:
    # Given requests that end while they are cancelled, and a wire that shows what the engine says
    answers: SimpleQueue[Answer] = SimpleQueue()
    with client_behind(tmp_path, engine) as (client, wire):
        for round_ in range(50):
            client.submit(requests(1, prefix=str(round_)), answers.put)
            client.cancel([f"{round_}-0"])
        client.submit(requests(1, prefix="last"), answers.put)
        until(lambda: any(isinstance(m, Finished) and m.id == "last-0" for m in wire.down))
    # Then no request of them has two outcomes
    ended = [message.id for message in wire.down if isinstance(message, Finished | Failed)]
    assert len(ended) == len(set(ended))
