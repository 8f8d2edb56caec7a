"""The client side of `core.protocol`: many threads submit requests, one I/O thread owns the socket.

The client keeps at most as many requests in flight as the engine grants. Every submitted request gets exactly one
outcome in its sink, unless it was cancelled first: outcomes are acknowledged, and ignored when they come again; the
engine is asked about those that are long in coming; when it goes away, comes back with another boot id or had given
this client up, what was in flight fails as `engine_lost`, which is retryable. What an engine of another release would
not understand fails as `engine_outdated`, which is retryable too: this one may be replaced, and others may be newer.
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from uuid import uuid4

import msgspec
import zmq

from core.protocol import (
    CLIENT_SILENCE_SECONDS,
    CONFIRM_SECONDS,
    HEARTBEAT_SECONDS,
    MODEL_LOADING,
    VERSION,
    Ack,
    Begun,
    Cancel,
    ClientFrame,
    ClientMessage,
    Confirm,
    Delta,
    Embed,
    EngineMessage,
    Failed,
    Generate,
    Hello,
    Load,
    Outcome,
    Ping,
    decode_engine,
    encode,
)
from workers.understanding import encodable, missing_fields

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 10 * HEARTBEAT_SECONDS
PAUSE_SECONDS = 0.8 * CLIENT_SILENCE_SECONDS  # the engine cancels what a client silent for all of it has in flight
LOOK_SECONDS = 0.2  # whether a shutdown has begun
ENGINE_LOST = "engine_lost"
ENGINE_OUTDATED = "engine_outdated"
INTERRUPTED = "interrupted"
CANCELLED = "cancelled"

Answer = Begun | Delta | Outcome
Request = Generate | Embed
Sink = Callable[[Answer], None]


@dataclass(frozen=True, slots=True)
class _Withdrawal:
    request_id: str


_Command = Sequence[Request | Load | _Withdrawal | str]


class EngineClient:
    """`start()` before use, `close()` at the end. All other methods may be called from any thread."""

    def __init__(
        self,
        endpoint: str,
        *,
        name: str = "client",
        clock: Callable[[], float] = time.monotonic,
        stopping: threading.Event | None = None,
    ) -> None:
        """stopping: once it is set, nobody waits any more for an engine that is away."""
        self._endpoint = endpoint
        self._identity = f"{name}-{uuid4().hex[:12]}".encode()
        self._clock = clock
        self._commands: SimpleQueue[_Command | None] = SimpleQueue()
        self._sinks: dict[str, Sink] = {}
        self._waiting: deque[Request] = deque()
        self._in_flight: dict[str, float] = {}  # by id, when it was sent, or confirmed last
        self._cancelling: list[str] = []
        self._acks: list[str] = []
        self._must_introduce = False  # say that acknowledgements will come
        self._loading: set[Load] = set()
        self._hello: Hello | None = None
        self._heard_at = 0.0
        self._changed = threading.Condition()
        self._stopping = stopping or threading.Event()
        self._wake_reader, self._wake_writer = os.pipe()
        self._thread = threading.Thread(target=self._run, name=f"engine-client {endpoint}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the I/O thread; what is in flight gets no more answers."""
        self._command(None)
        self._thread.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    @property
    def hello(self) -> Hello | None:
        """What the engine said last; None while it is away, or about to end."""
        return None if self._hello is None or self._hello.is_ending else self._hello

    def kinds(self) -> dict[str, str]:
        """Model -> kind, where the engine knows it."""
        return {model.name: model.kind for model in self._hello.models if model.kind} if self._hello else {}

    def wait_ready(self, timeout_seconds: float) -> Hello | None:
        """Waits until the engine is there with a model that is not just being loaded; None when it is not in time."""
        deadline = self._clock() + timeout_seconds
        with self._changed:
            while not self._is_ready() and not self._stopping.is_set() and self._clock() < deadline:
                self._changed.wait(min(LOOK_SECONDS, timeout_seconds))
            return self.hello if self._is_ready() else None

    def _is_ready(self) -> bool:
        hello = self.hello
        return hello is not None and any(model.state != MODEL_LOADING for model in hello.models)

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        """`sink` is called with every answer, on the I/O thread or at once: it must only hand it on. No id is ever used
        twice."""
        sound = encodable(requests, sink)
        for request in sound:
            self._sinks[request.id] = sink
        self._command(sound)

    def cancel(self, ids: Sequence[str]) -> None:
        """Ends requests that nobody waits for any more; their sinks hear nothing more."""
        for request_id in ids:
            self._sinks.pop(request_id, None)
        self._command(list(ids))

    def withdraw(self, ids: Sequence[str]) -> None:
        """As `cancel`, but each gets its outcome: as a rule a `Failed`, which says what it had used by then."""
        self._command([_Withdrawal(request_id) for request_id in ids])

    def load(self, model: str) -> None:
        """Asks the engine to try again with a model that could not be loaded; it decides when."""
        self._command([Load(model)])

    def _command(self, command: _Command | None) -> None:
        self._commands.put(command)
        os.write(self._wake_writer, b"x")

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:
            logger.critical("the link to the engine broke; this worker ends and is started again", exc_info=True)
            self._in_flight.update(dict.fromkeys(self._sinks, 0.0))
            self._lose("cannot be reached any more")
            os.kill(os.getpid(), signal.SIGTERM)

    def _serve(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        try:
            self._connect(socket)
            while self._step(socket):
                pass
        finally:
            socket.close(linger=100)
            context.term()

    def _connect(self, socket: "zmq.Socket[bytes]") -> None:
        socket.setsockopt(zmq.IDENTITY, self._identity)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues up for an engine that is away
        socket.connect(self._endpoint)
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._wake_reader, zmq.POLLIN)
        self._ping_at = self._ask_at = 0.0
        self._sent_at = self._clock()

    def _step(self, socket: "zmq.Socket[bytes]") -> bool:
        events = dict(self._poller.poll(int(HEARTBEAT_SECONDS * 500)))
        if self._wake_reader in events:
            os.read(self._wake_reader, 65536)
        if not self._take_commands():
            return False
        if self._in_flight and self._clock() - self._sent_at > PAUSE_SECONDS:
            self._cancelling.extend(self._in_flight)
            self._lose("may have given this process up, which was paused or cut off,", INTERRUPTED)
        if socket in events:
            self._receive(socket)
        self._watch()
        self._send(socket)
        return True

    def _take_commands(self) -> bool:
        while not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            for item in command:
                self._take_command(item)
        return True

    def _take_command(self, item: Request | Load | _Withdrawal | str) -> None:
        if isinstance(item, Generate | Embed):
            self._waiting.append(item)
        elif isinstance(item, Load):
            self._loading.add(item)
        elif isinstance(item, _Withdrawal):
            self._withdraw(item.request_id)
        elif isinstance(item, str) and item in self._in_flight:
            self._cancelling.append(item)

    def _withdraw(self, request_id: str) -> None:
        """One that was not sent yet has used nothing."""
        if request_id in self._in_flight:
            self._cancelling.append(request_id)
        elif (sink := self._sinks.pop(request_id, None)) is not None:
            sink(Failed(request_id, CANCELLED, "it was withdrawn before it was sent"))

    def _receive(self, socket: "zmq.Socket[bytes]") -> None:
        while True:
            try:
                frame = decode_engine(socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            except msgspec.DecodeError as error:
                logger.warning("engine at %s sent a frame that cannot be read: %s", self._endpoint, error)
                continue
            self._heard_at = self._clock()
            for message in frame.messages:
                self._take(message)

    def _take(self, message: EngineMessage) -> None:
        if isinstance(message, Hello):
            self._greet(message)
            return
        sink = self._sinks.get(message.id)
        if not isinstance(message, Begun | Delta):
            self._in_flight.pop(message.id, None)
            self._sinks.pop(message.id, None)
            self._acks.append(message.id)
        if sink is not None:
            sink(message)

    def _greet(self, hello: Hello) -> None:
        known = self._hello
        if known is not None and known.boot_id != hello.boot_id:
            self._cancelling.extend(self._in_flight)  # what was on its way may have reached this one
            self._lose("was restarted")
        elif known is not None and known.session != hello.session:
            self._cancelling.extend(self._in_flight)  # those that were sent since
            self._lose("had given this process up", INTERRUPTED)
        if known is None or (known.boot_id, known.session) != (hello.boot_id, hello.session):
            self._must_introduce = True
            if hello.version != VERSION:
                logger.warning(
                    "engine at %s speaks version %d of the protocol, this process %d; requests that need what the "
                    "engine does not know fail", self._endpoint, hello.version, VERSION,
                )  # fmt: skip
        with self._changed:
            self._hello = hello
            self._changed.notify_all()

    def _watch(self) -> None:
        if self._hello is not None and self._clock() - self._heard_at > SILENCE_SECONDS:
            self._cancelling.extend(self._in_flight)  # should it still live
            self._lose(f"has been silent for {SILENCE_SECONDS:.0f} s")

    def _lose(self, what_happened: str, code: str = ENGINE_LOST) -> None:
        """code: `engine_lost` where the engine may have died of what was in flight; one that took its leave did not."""
        if self._hello is not None and self._hello.is_ending:
            code = INTERRUPTED
        lost = list(self._in_flight)
        self._in_flight.clear()
        with self._changed:
            self._hello = None
        message = f"the engine {what_happened} while this request was running"
        for request_id in lost:
            sink = self._sinks.pop(request_id, None)
            if sink is not None:
                sink(Failed(request_id, code, message, is_retryable=True))
        logger.warning("engine at %s %s; %d requests run again", self._endpoint, what_happened, len(lost))

    def _send(self, socket: "zmq.Socket[bytes]") -> None:
        messages: list[ClientMessage] = [*self._due_acks()]
        if self._cancelling:
            messages.append(Cancel(self._cancelling))
        messages += [*self._due_requests(), *self._loading, *self._due_questions()]
        if all(isinstance(message, Ack) for message in messages):
            if self._clock() < self._ping_at:
                return
            messages.append(Ping())
        try:
            socket.send(encode(ClientFrame(messages)), zmq.NOBLOCK)
        except zmq.Again:  # not connected: requests stay waiting
            self._put_back(messages)
            return
        self._acks, self._cancelling, self._must_introduce = [], [], False
        self._loading.clear()
        self._sent_at = self._clock()
        self._ping_at = self._clock() + HEARTBEAT_SECONDS

    def _due_acks(self) -> list[Ack]:
        """First in their frame, as cancels are, so that a request that follows finds its credit free. An engine of an
        earlier release could not read them."""
        if self._hello is None or not self._hello.takes_acks:
            self._acks.clear()
        elif self._acks or self._must_introduce:
            return [Ack(self._acks)]
        return []

    def _due_questions(self) -> list[Confirm]:
        """Once a second at most."""
        now = self._clock()
        if self._hello is None or not self._hello.takes_acks or now < self._ask_at:
            return []
        self._ask_at = now + HEARTBEAT_SECONDS
        late = [request_id for request_id, at in self._in_flight.items() if now - at >= CONFIRM_SECONDS]
        self._in_flight.update(dict.fromkeys(late, now))
        return [Confirm(late)] if late else []

    def _due_requests(self) -> list[ClientMessage]:
        due: list[ClientMessage] = []
        hello = self.hello
        if hello is None:
            return due
        while self._waiting and len(self._in_flight) < hello.credits:
            request = self._waiting.popleft()
            if request.id not in self._sinks:  # cancelled while it waited
                continue
            if missing := missing_fields(request, hello):
                self._refuse(request, missing)
                continue
            self._in_flight[request.id] = self._clock()
            due.append(request)
        return due

    def _refuse(self, request: Request, missing: Sequence[str]) -> None:
        message = (
            f"the engine is of another release and does not know {', '.join(missing)}, which this request asks for; "
            "restart the engine from this release"
        )
        sink = self._sinks.pop(request.id, None)
        if sink is not None:
            sink(Failed(request.id, ENGINE_OUTDATED, message, is_retryable=True))

    def _put_back(self, messages: Sequence[ClientMessage]) -> None:
        requests = [message for message in messages if isinstance(message, Generate | Embed)]
        for request in requests:
            self._in_flight.pop(request.id, None)
        self._waiting.extendleft(reversed(requests))


def probe(endpoint: str, timeout_seconds: float = 0.5) -> Hello | None:
    """Asks an engine once how it is; None when it does not answer in time."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        socket.send(encode(ClientFrame([Ping()])))
        if not socket.poll(int(timeout_seconds * 1000)):
            return None
        frame = decode_engine(socket.recv())
    return next((message for message in frame.messages if isinstance(message, Hello)), None)
