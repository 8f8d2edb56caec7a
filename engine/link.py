"""The engine's end of the wire: one thread that owns the ROUTER socket, and two queues to the service.

It decodes what clients send, stamps the time of arrival, answers each client with `Hello` at its first word, at every
`Ping` and every second, sends outcomes again that nobody acknowledged, and reports clients that fell silent. A frame
that nobody can read is logged and dropped. There is no high-water mark: credits bound what is in flight, and a ROUTER
at its mark would drop answers without a word.
"""

import itertools
import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq

from core.errors import ConfigurationError
from core.protocol import (
    CLIENT_SILENCE_SECONDS,
    HEARTBEAT_SECONDS,
    RESEND_SECONDS,
    Ack,
    Cancel,
    ClientMessage,
    Confirm,
    EngineFrame,
    EngineMessage,
    Hello,
    Ping,
    decode_client,
    encode,
)
from engine.outcomes import Outcomes

logger = logging.getLogger(__name__)

_LINGER_MILLISECONDS = 500
_FRAMES_PER_TURN = 256  # then answers get their turn


@dataclass(frozen=True, slots=True)
class Received:
    client: bytes
    messages: list[ClientMessage]
    arrived_seconds: float


@dataclass(frozen=True, slots=True)
class ClientLost:
    """A client that has been silent too long, or that is gone."""

    client: bytes


@dataclass(frozen=True, slots=True)
class LinkBroken:
    """The link's thread has ended; without it the engine is deaf."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Patience:
    """silence_seconds: after which a client is given up. return_seconds: what an acknowledging client whose connection
    broke has to come back; clients try every second. resend_seconds: after which an outcome is sent again.
    num_outcomes: kept for one client at most; one that keeps to its credits never has more than those.
    """

    silence_seconds: float = CLIENT_SILENCE_SECONDS
    return_seconds: float = 3.0
    resend_seconds: float = RESEND_SECONDS
    num_outcomes: int = 1024


@dataclass(slots=True)
class _Client:
    """heard_seconds: when it spoke last. missed_seconds: since when it cannot be reached, if so."""

    session: int
    heard_seconds: float
    missed_seconds: float = field(default=math.inf)


class Link:
    """post: takes what arrives, on the link's thread. hello: makes the greeting, on the link's thread. pulse: a file
    that is touched every second, for whoever watches that this process is not stopped."""

    def __init__(
        self,
        endpoint: str,
        post: Callable[[Received | ClientLost | LinkBroken], None],
        hello: Callable[[], Hello],
        clock: Callable[[], float] = time.monotonic,
        patience: Patience | None = None,
        pulse: Path | None = None,
    ) -> None:
        self._post = post
        self._hello = hello
        self._clock = clock
        self._patience = patience or Patience()
        self._pulse = pulse
        self._clients: dict[bytes, _Client] = {}
        self._sessions = itertools.count(1)
        self._outcomes = Outcomes(self._patience.num_outcomes, self._patience.resend_seconds)
        self._outbox: queue.SimpleQueue[tuple[bytes, list[EngineMessage]]] = queue.SimpleQueue()
        self._is_ending = False
        self._must_take_leave = False
        self._is_closing = False
        self._context = zmq.Context()
        self._socket = self._bind(endpoint)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._thread = threading.Thread(target=self._work, name="link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, client: bytes, messages: list[EngineMessage]) -> None:
        """All of them travel in one frame. From the service's thread."""
        self._outbox.put((client, messages))
        self._wake()

    def take_leave(self) -> None:
        """Tells every client that this engine ends, before anything that is sent from now on."""
        self._is_ending = self._must_take_leave = True
        self._wake()

    def close(self) -> None:
        """Send what is left, then let the socket go."""
        self._is_closing = True
        self._wake()
        self._thread.join()
        self._socket.close(linger=_LINGER_MILLISECONDS)
        self._context.term()
        self._wake_reader.close()
        self._wake_writer.close()

    def _bind(self, endpoint: str) -> "zmq.Socket[bytes]":
        router = self._context.socket(zmq.ROUTER)
        router.set_hwm(0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer to a client that is gone raises instead of vanishing
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a client that reconnects under its identity gets its answers
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigurationError(f"expected an endpoint that can be bound, got {endpoint}: {error}") from error
        return router

    def _wake(self) -> None:
        try:
            self._wake_writer.send(b"\0")
        except BlockingIOError:
            return  # it is full of wake-ups already

    def _work(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001  # handed to the service, which ends the process with it
            self._post(LinkBroken(error))

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_reader, zmq.POLLIN)
        next_beat = self._clock() + HEARTBEAT_SECONDS
        while not self._is_closing:
            ready = dict(poller.poll(math.ceil(max(0.0, next_beat - self._clock()) * 1000)))
            if self._wake_reader.fileno() in ready:
                self._wake_reader.recv(4096)
            if self._socket in ready:
                self._receive()
            self._flush()
            if self._clock() >= next_beat:
                self._beat()
                next_beat = self._clock() + HEARTBEAT_SECONDS
        self._flush()

    def _receive(self) -> None:
        for _ in range(_FRAMES_PER_TURN):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(parts)

    def _take(self, parts: list[bytes]) -> None:
        client, now = parts[0], self._clock()
        messages = _decode(client, parts[1:])
        is_new = client not in self._clients
        is_back = self._hear(client, now)
        orders = [order for message in messages if (order := self._order(client, message)) is not None]
        if is_new or any(isinstance(message, Ping) for message in messages):
            self._greet(client)
        if is_back:
            self._transmit(client, self._outcomes.again(client, now))
        if orders:
            self._post(Received(client, orders, now))

    def _hear(self, client: bytes, now: float) -> bool:
        """Whether it could not be reached meanwhile."""
        known = self._clients.get(client)
        if known is None:
            known = self._clients[client] = _Client(next(self._sessions), now)
        is_back = known.missed_seconds < math.inf
        known.heard_seconds, known.missed_seconds = now, math.inf
        return is_back

    def _order(self, client: bytes, message: ClientMessage) -> ClientMessage | None:
        """What the service has to do with it. A request whose outcome is on its way cannot be cancelled or lost."""
        match message:
            case Ack():
                self._outcomes.acknowledge(client, message.ids)
            case Cancel() | Confirm():
                ids = [request_id for request_id in message.ids if not self._outcomes.is_kept(client, request_id)]
                return type(message)(ids) if ids else None
            case Ping():
                return None
            case _:
                return message
        return None

    def _flush(self) -> None:
        self._greet_for_the_last_time()
        while not self._outbox.empty():
            client, messages = self._outbox.get()
            self._greet_for_the_last_time()
            if client in self._clients:
                self._transmit(client, self._outcomes.keep(client, messages, self._clock()))

    def _greet_for_the_last_time(self) -> None:
        if self._must_take_leave:
            self._must_take_leave = False
            self._greet_all()

    def _beat(self) -> None:
        now = self._clock()
        if self._pulse is not None:
            self._pulse.touch()
        for client, known in list(self._clients.items()):
            if now - known.heard_seconds > self._patience.silence_seconds:
                silence = self._patience.silence_seconds
                logger.warning("client %s was silent for %g s; its requests are cancelled", client.hex(), silence)
                self._lose(client)
            elif now - known.missed_seconds > self._patience.return_seconds:
                logger.info("client %s has not come back; its requests are cancelled", client.hex())
                self._lose(client)
        for client, late in self._outcomes.overdue(now).items():
            logger.info("client %s has not acknowledged %d outcomes; they are sent again", client.hex(), len(late))
            self._transmit(client, late)
        self._greet_all()

    def _greet_all(self) -> None:
        for client in list(self._clients):
            self._greet(client)

    def _greet(self, client: bytes) -> None:
        session = self._clients[client].session
        hello = msgspec.structs.replace(self._hello(), session=session, takes_acks=True, is_ending=self._is_ending)
        self._transmit(client, [hello])

    def _transmit(self, client: bytes, messages: list[EngineMessage]) -> None:
        if not messages:
            return
        try:
            self._socket.send_multipart([client, encode(EngineFrame(messages))])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._miss(client)

    def _miss(self, client: bytes) -> None:
        """Its connection is gone. Outcomes of one that acknowledges are kept for its return."""
        if not self._outcomes.is_followed(client):
            logger.info("client %s is gone; its requests are cancelled", client.hex())
            self._lose(client)
        elif (known := self._clients.get(client)) is not None:
            known.missed_seconds = min(known.missed_seconds, self._clock())

    def _lose(self, client: bytes) -> None:
        self._outcomes.drop(client)
        if self._clients.pop(client, None) is not None:
            self._post(ClientLost(client))


def _decode(client: bytes, parts: list[bytes]) -> list[ClientMessage]:
    """Nothing where it is not one readable frame."""
    if len(parts) != 1:
        logger.warning("client %s: expected one part, got %d; dropped", client.hex(), len(parts))
        return []
    try:
        return decode_client(parts[0]).messages
    except (msgspec.DecodeError, ValueError, RecursionError, MemoryError) as error:  # whatever bytes can provoke
        logger.warning("client %s: unreadable frame of %d bytes dropped: %s", client.hex(), len(parts[0]), error)
        return []
