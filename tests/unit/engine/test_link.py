"""The engine's end of the wire, with a real socket and without an engine."""

import queue
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from core.errors import ConfigurationError
from core.protocol import (
    Ack,
    Cancel,
    EngineMessage,
    EngineStats,
    Failed,
    Finished,
    Generate,
    Hello,
    Ping,
    Timing,
    Usage,
)
from engine.link import ClientLost, Link, LinkBroken, Patience, Received
from tests.engine_process import DEADLINE_SECONDS, EngineClient, engine_client
from tests.polling import until

HELLO = Hello("boot", "cpu", 8, [], EngineStats())
GREETING = Hello("boot", "cpu", 8, [], EngineStats(), session=1, takes_acks=True)
Event = Received | ClientLost | LinkBroken


class Wire:
    def __init__(self, endpoint: str, **patience: float) -> None:
        """patience: as in `Patience`; nobody is given up where nothing is said."""
        self.endpoint = endpoint
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        patient = Patience(**{"silence_seconds": 600.0, "return_seconds": 600.0, **patience})  # type: ignore[arg-type]
        self.link = Link(endpoint, self.inbox.put, lambda: HELLO, patience=patient)
        self.link.start()

    def next(self) -> Event:
        return self.inbox.get(timeout=DEADLINE_SECONDS)

    def identity(self) -> bytes:
        """Of the client that has just sent something."""
        received = self.next()
        assert isinstance(received, Received)
        return received.client


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
        assert client.wait_for(lambda message: isinstance(message, Hello)) == GREETING


def test_hello_is_repeated_as_a_heartbeat(wire: Wire) -> None:
    with engine_client(wire.endpoint) as client:
        client.hello()
        client.received.clear()
        assert client.wait_for(lambda message: isinstance(message, Hello)) == GREETING


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
        # Then it is reported, and greeted anew, as another, when it speaks again
        assert isinstance(wire.next(), ClientLost)
        client.send(Ping())
        client.wait_for(lambda message: isinstance(message, Hello) and message.session > GREETING.session)
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


def test_whoever_is_connected_hears_of_the_end_before_what_comes_of_it(tmp_path: Path) -> None:
    wire = Wire(f"ipc://{tmp_path}/socket")
    with engine_client(wire.endpoint) as client:
        client.send(Generate("x", "m", text="y"))
        name = wire.identity()
        wire.link.take_leave()
        wire.link.send(name, [finished("x")])
        wire.link.close()
        client.outcome("x")
        farewell = msgspec.structs.replace(GREETING, is_ending=True)
        assert client.received.index(farewell) < client.received.index(finished("x"))


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


def outcomes(client: EngineClient, name: str) -> list[EngineMessage]:
    return [m for m in client.received if isinstance(m, Finished | Failed) and m.id == name]


def wait_for_beats(client: EngineClient, count: int = 1) -> None:
    """Heartbeats come in order with everything else: what had to be sent before them has been."""
    for _ in range(count):
        client.received = [message for message in client.received if not isinstance(message, Hello)]
        client.wait_for(lambda message: isinstance(message, Hello))


def test_an_outcome_that_is_not_acknowledged_is_sent_again_until_it_is(tmp_path: Path) -> None:
    # Given a client that acknowledges, and no patience
    wire = Wire(f"ipc://{tmp_path}/socket", resend_seconds=0.0)
    with engine_client(wire.endpoint) as client:
        client.send(Ack([]), Generate("x", "m", text="y"))
        # When it gets an outcome and says nothing
        wire.link.send(wire.identity(), [finished("x")])
        client.outcome("x")
        wait_for_beats(client, 2)
        # Then it gets it again
        assert len(outcomes(client, "x")) > 1
        # And not after it has said that it has it
        client.send(Ack(["x"]))
        client.hello()
        client.received.clear()
        wait_for_beats(client, 2)
        assert outcomes(client, "x") == []
    wire.link.close()


def test_a_client_that_never_acknowledges_hears_every_outcome_once(tmp_path: Path) -> None:
    # Given a client of an earlier release, and no patience
    wire = Wire(f"ipc://{tmp_path}/socket", resend_seconds=0.0)
    with engine_client(wire.endpoint) as client:
        client.send(Generate("x", "m", text="y"))
        # When it gets an outcome and heartbeats pass
        wire.link.send(wire.identity(), [finished("x")])
        client.outcome("x")
        wait_for_beats(client, 2)
        # Then that was all
        assert outcomes(client, "x") == [finished("x")]
    wire.link.close()


def test_a_cancel_that_crosses_its_answer_changes_nothing(wire: Wire) -> None:
    with engine_client(wire.endpoint) as client:
        # Given an outcome under way to a client that acknowledges
        client.send(Ack([]), Generate("x", "m", text="y"))
        identity = wire.identity()
        wire.link.send(identity, [finished("x")])
        client.outcome("x")
        # When the client, which might not have read it yet, cancels that request and another one
        client.send(Cancel(["x"]))
        client.send(Cancel(["x", "z"]))
        # Then the service hears of the other alone
        received = wire.next()
        assert isinstance(received, Received)
        assert received.messages == [Cancel(["z"])]
        # And a second outcome that it has said by then does not leave the engine
        wire.link.send(identity, [Failed("x", "cancelled", "by the client"), finished("z")])
        client.outcome("z")
        assert outcomes(client, "x") == [finished("x")]


def test_a_client_whose_connection_breaks_gets_what_it_missed_when_it_is_back(wire: Wire) -> None:
    # Given a client that acknowledges and is cut off
    with engine_client(wire.endpoint, b"me") as client:
        client.send(Ack([]), Generate("x", "m", text="y"))
        assert wire.identity() == b"me"
        session = client.hello().session
    until(lambda: wire.link._clients[b"me"].missed_seconds < float("inf"))
    # When its answer comes, and then it comes itself
    wire.link.send(b"me", [finished("x")])
    with engine_client(wire.endpoint, b"me") as client:
        hello = client.hello()
        # Then it was not given up, and has its answer, long before the time to send it again
        assert hello.session == session
        assert client.outcome("x") == finished("x")
    assert wire.inbox.empty()


def test_a_client_whose_connection_broke_is_lost_when_it_does_not_come_back(tmp_path: Path) -> None:
    wire = Wire(f"ipc://{tmp_path}/socket", return_seconds=0.0)
    with engine_client(wire.endpoint, b"me") as client:
        client.send(Ack([]))
        client.hello()
    assert wire.next() == ClientLost(b"me")
    wire.link.close()


@pytest.mark.parametrize(
    "data", [b"\x91" * 5_000 + b"\xc0", b"\x81\xa8messages" + b"\x91" * 5_000 + b"\xc0", b"\xdd\xff\xff\xff\xff"]
)
def test_a_frame_that_is_deeper_or_longer_than_any_is_dropped(wire: Wire, data: bytes) -> None:
    with engine_client(wire.endpoint) as client:
        client.send_raw(data)
        client.hello()
    assert isinstance(wire.next(), ClientLost)


def test_it_gives_a_sign_of_life_though_nobody_asks(tmp_path: Path) -> None:
    # Given
    link = Link(f"ipc://{tmp_path}/socket", lambda _: None, lambda: HELLO, pulse=tmp_path / "pulse")
    # When
    link.start()
    # Then
    until((tmp_path / "pulse").exists)
    link.close()
