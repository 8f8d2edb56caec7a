"""A wire between one client and an engine that loses frames on demand, and an engine of an earlier release."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from core.protocol import (
    ClientFrame,
    ClientMessage,
    EngineFrame,
    EngineMessage,
    EngineStats,
    Failed,
    Generate,
    Hello,
    ModelStatus,
    decode_client,
    decode_engine,
    encode,
)

POLL_MILLISECONDS = 20
Frame = ClientFrame | EngineFrame


class Wire:
    """`loses`: asked about every frame. `up`, `down`: all messages that came, lost ones too."""

    def __init__(self, loses: Callable[[Frame], bool]) -> None:
        self.loses = loses
        self.up: list[ClientMessage] = []
        self.down: list[EngineMessage] = []
        self._closing = threading.Event()

    def close(self) -> None:
        self._closing.set()

    def run(self, front: "zmq.Socket[bytes]", back: "zmq.Socket[bytes]") -> None:
        poller, client = zmq.Poller(), b""
        poller.register(front, zmq.POLLIN)
        poller.register(back, zmq.POLLIN)
        while not self._closing.is_set():
            ready = dict(poller.poll(POLL_MILLISECONDS))
            if front in ready:
                client, data = front.recv_multipart()
                frame = decode_client(data)
                self.up += frame.messages
                if not self.loses(frame):
                    back.send(data)
            if back in ready:
                data = back.recv()
                answer = decode_engine(data)
                self.down += answer.messages
                if not self.loses(answer):
                    front.send_multipart([client, data])


@contextmanager
def lossy_wire(endpoint: str, engine: str, loses: Callable[[Frame], bool] = lambda _: False) -> Iterator[Wire]:
    """One client may connect to `endpoint`."""
    wire = Wire(loses)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as front, context.socket(zmq.DEALER) as back:
        for socket in (front, back):
            socket.setsockopt(zmq.LINGER, 0)
        front.bind(endpoint)
        back.connect(engine)
        thread = threading.Thread(target=wire.run, args=(front, back))
        thread.start()
        try:
            yield wire
        finally:
            wire.close()
            thread.join()


@contextmanager
def engine_of_old(endpoint: str, session: Callable[[], int] = lambda: 0) -> Iterator[list[ClientMessage]]:
    """Greets with every answer, refuses every request, and reads no acknowledgement. session: the one it greets with.
    Gives what it was sent."""
    heard: list[ClientMessage] = []
    closing = threading.Event()

    def serve(router: "zmq.Socket[bytes]") -> None:
        while not closing.is_set():
            if not router.poll(POLL_MILLISECONDS):
                continue
            client, data = router.recv_multipart()
            messages = decode_client(data).messages
            heard.extend(messages)
            hello = Hello("old", "cpu", 4, [ModelStatus("m", "ready")], EngineStats(), session())
            answers = [Failed(m.id, "overloaded", "") for m in messages if isinstance(m, Generate) and m.model == "m"]
            router.send_multipart([client, encode(EngineFrame([hello, *answers]))])

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.bind(endpoint)
        thread = threading.Thread(target=serve, args=(router,))
        thread.start()
        try:
            yield heard
        finally:
            closing.set()
            thread.join()
