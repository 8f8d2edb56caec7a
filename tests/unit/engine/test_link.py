"""The engine's end of the wire, with a real socket and without an engine."""

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import ConfigurationError
from core.protocol import EngineStats, Finished, Generate, Hello, Ping, Timing, Usage
from engine.link import ClientLost, Link, LinkBroken, Received
from tests.engine_process import DEADLINE_SECONDS, engine_client

HELLO = Hello("boot", "cpu", 8, [], EngineStats())
Event = Received | ClientLost | LinkBroken


class Wire:
    def __init__(self, endpoint: str, silence_seconds: float = 60.0) -> None:
        self.endpoint = endpoint
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.link = Link(endpoint, self.inbox.put, lambda: HELLO, silence_seconds=silence_seconds)
        self.link.start()

    def next(self) -> Event:
        return self.inbox.get(timeout=DEADLINE_SECONDS)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(f"ipc://{tmp_path}/socket")
    yield wire
    wire.link.close()


def finished(name: str) -> Finished:
    return Finished(name, "text", "stop", Usage(1, 1), Timing(0, 0, 0))


def test_the_first_word_of_a_client_is_answered_with_hello_and_passed_on(wire: Wire) -> None:
    with engine_client(wire.endpoint) as client:
        client.send(Generate("x", "m", text="y"))
        received = wire.next()
        assert isinstance(received, Received)
        assert received.messages == [Generate("x", "m", text="y")]
        assert client.wait_for(lambda message: isinstance(message, Hello)) == HELLO


def test_hello_is_repeated_as_a_heartbeat(wire: Wire) -> None:
    with engine_client(wire.endpoint) as client:
        client.hello()
        client.received.clear()
        assert client.wait_for(lambda message: isinstance(message, Hello)) == HELLO


def test_answers_reach_the_client_that_they_are_for(wire: Wire) -> None:
    with engine_client(wire.endpoint) as first, engine_client(wire.endpoint) as second:
        identities = []
        for client in (first, second):
            client.send(Generate("x", "m", text="y"))
            received = wire.next()
            assert isinstance(received, Received)
            identities.append(received.client)
        wire.link.send(identities[1], [finished("x")])
        wire.link.send(identities[0], [finished("a"), finished("b")])
        assert second.outcome("x") == finished("x")
        assert [first.outcome(name) for name in ("a", "b")] == [finished("a"), finished("b")]
        assert not any(isinstance(message, Finished) and message.id == "x" for message in first.received)


def test_a_client_that_falls_silent_is_lost(tmp_path: Path) -> None:
    # Given a link without patience and a client that says one word
    wire = Wire(f"ipc://{tmp_path}/socket", silence_seconds=0.0)
    with engine_client(wire.endpoint) as client:
        client.send(Ping())
        # Then it is reported, and greeted anew when it speaks again
        assert isinstance(wire.next(), ClientLost)
        client.hello()
    wire.link.close()


def test_a_client_that_went_away_is_lost_at_the_next_heartbeat(wire: Wire) -> None:
    with engine_client(wire.endpoint) as client:
        client.hello()
    assert isinstance(wire.next(), ClientLost)


def test_closing_sends_what_is_left(tmp_path: Path) -> None:
    wire = Wire(f"ipc://{tmp_path}/socket")
    with engine_client(wire.endpoint) as client:
        client.send(Generate("x", "m", text="y"))
        received = wire.next()
        assert isinstance(received, Received)
        wire.link.send(received.client, [finished("x")])
        wire.link.close()
        assert client.outcome("x") == finished("x")


def test_a_link_that_breaks_says_so(tmp_path: Path) -> None:
    # Given a greeting that raises, as nothing should
    wire = Wire(f"ipc://{tmp_path}/socket")
    wire.link._hello = lambda: 1 / 0  # type: ignore[assignment, return-value]
    with engine_client(wire.endpoint) as client:
        client.send(Ping())
        broken = wire.next()
    assert isinstance(broken, LinkBroken)
    assert isinstance(broken.error, ZeroDivisionError)
    wire.link.close()


def test_an_endpoint_that_cannot_be_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected an endpoint that can be bound"):
        Link(f"ipc://{tmp_path}/missing/socket", lambda _: None, lambda: HELLO)
