"""Seconds from the start of an engine process until it says that its model is ready."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zmq

from benchmarks.peers.channel import Setup
from benchmarks.peers.environment import PeerFailed
from core.protocol import MODEL_FAILED, MODEL_READY, ClientFrame, Hello, ModelStatus, Ping, decode_engine, encode
from workers.agent import PATIENT_THREADS

READY_SECONDS = 300.0
ASK_MILLISECONDS, ANSWER_MILLISECONDS = 20, 1000
MODEL = "random"


def ready_seconds(setup: Setup, log: Path) -> float:
    """Of one start. Raises PeerFailed."""
    with tempfile.TemporaryDirectory() as directory, log.open("w") as output:
        endpoint = f"ipc://{directory}/engine.sock"
        command = [sys.executable, "-m", "engine.server", "--endpoint", endpoint, "--device", "cpu"]
        command += ["--model", f"{MODEL}={setup.model}", "--preload", MODEL, "--slots", str(setup.num_slots)]
        command += ["--max-context-tokens", str(setup.context_tokens)]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **PATIENT_THREADS})
        try:
            _wait_until_ready(process, endpoint, log)
            return time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # no questions pile up for an engine that does not listen yet
        socket.setsockopt(zmq.RECONNECT_IVL, ASK_MILLISECONDS)
        socket.connect(endpoint)
        while time.monotonic() < deadline and process.poll() is None:
            status = _ask(socket)
            if status is not None and status.state == MODEL_READY:
                return
            if status is not None and status.state == MODEL_FAILED:
                raise PeerFailed(f"expected its model to be loaded, but: {status.error}; its log is {log}")
            time.sleep(ASK_MILLISECONDS / 1000)
    raise PeerFailed(f"expected a model that is ready within {READY_SECONDS:.0f} s, got none; its log is {log}")


def _ask(socket: "zmq.Socket[bytes]") -> ModelStatus | None:
    """What the engine says last of its only model; None where it says nothing."""
    if not socket.poll(ASK_MILLISECONDS, zmq.POLLOUT):
        return None
    socket.send(encode(ClientFrame([Ping()])))
    status = None
    timeout_milliseconds = ANSWER_MILLISECONDS
    while socket.poll(timeout_milliseconds):
        hellos = [message for message in decode_engine(socket.recv()).messages if isinstance(message, Hello)]
        status = hellos[-1].models[0] if hellos else status
        timeout_milliseconds = 0
    return status
