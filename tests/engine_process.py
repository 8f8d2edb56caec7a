"""A real engine process and a real client for tests: starts `python -m engine.server`, speaks the protocol over ZMQ."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from core.protocol import (
    ClientFrame,
    ClientMessage,
    Delta,
    EngineMessage,
    Failed,
    Finished,
    Generate,
    Hello,
    Ping,
    decode_engine,
    encode,
)

DEADLINE_SECONDS = 120.0
ROOT = Path(__file__).parents[1]


HEARTBEAT_MILLISECONDS = 1000


class EngineClient:
    """A DEALER with an identity of its own. Every wait has a deadline and raises AssertionError at it."""

    def __init__(self, endpoint: str, identity: bytes = b"") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        if identity:
            self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.connect(endpoint)
        self.received: list[EngineMessage] = []

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def send(self, *messages: ClientMessage) -> None:
        self._socket.send(encode(ClientFrame(list(messages))))

    def send_raw(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts)

    def wait_for(self, is_wanted: Callable[[EngineMessage], bool]) -> EngineMessage:
        """The first message ever received that is wanted."""
        seen, deadline = 0, time.monotonic() + DEADLINE_SECONDS
        while True:
            for message in self.received[seen:]:
                if is_wanted(message):
                    return message
            seen = len(self.received)
            left = max(0.0, deadline - time.monotonic())
            assert self._socket.poll(int(left * 1000)), f"expected a message, got {self.received[-3:]}"
            self.received += decode_engine(self._socket.recv()).messages

    def hello(self) -> Hello:
        """A fresh one."""
        self.received = [message for message in self.received if not isinstance(message, Hello)]
        self.send(Ping())
        hello = self.wait_for(lambda message: isinstance(message, Hello))
        assert isinstance(hello, Hello)
        return hello

    def wait_until_ready(self, model: str) -> Hello:
        """Asks again and again: a client that is silent while a slow machine loads a model is given up."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            hello = self.hello()
            if {status.name: status.state for status in hello.models}[model] in ("ready", "failed"):
                return hello
            assert time.monotonic() < deadline, f"expected {model} to be ready, got {hello.models}"
            self._socket.poll(HEARTBEAT_MILLISECONDS)

    def outcome(self, request_id: str) -> Finished | Failed:
        message = self.wait_for(lambda message: isinstance(message, Finished | Failed) and message.id == request_id)
        assert isinstance(message, Finished | Failed)
        return message

    def ask(self, *requests: Generate) -> list[Finished | Failed]:
        self.send(*requests)
        return [self.outcome(request.id) for request in requests]

    def deltas(self, request_id: str) -> list[Delta]:
        return [message for message in self.received if isinstance(message, Delta) and message.id == request_id]


@contextmanager
def engine_process(endpoint: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Ends it with SIGKILL where the test has not ended it."""
    command = [sys.executable, "-m", "engine.server", "--endpoint", endpoint, *arguments]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


@contextmanager
def engine_client(endpoint: str, identity: bytes = b"") -> Iterator[EngineClient]:
    client = EngineClient(endpoint, identity)
    try:
        yield client
    finally:
        client.close()
