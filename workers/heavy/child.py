"""`python -m engine.jobs …` as a child: its progress as it comes, its end, and a quick end when the job is stopped. The
kernel ends it when this worker dies."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import IO

import msgspec

from core.errors import ModelFailure, Unavailable
from core.lifeline import PARENT_VARIABLE
from core.protocol import Spent
from workers.heavy.work import Talk

LOOK_SECONDS = 0.1
PATIENCE_SECONDS = 0.7  # from SIGTERM to SIGKILL: a cancelled job is gone within two seconds
TAIL_CHARACTERS = 2000


def run_engine_job(arguments: Sequence[str], talk: Talk) -> dict[str, object]:
    """What the child said at its end; the device is its own as long as it lives. Call it on a thread that lives as long
    as the child. Raises Interrupted when it was told to stop, ModelFailure when the child failed, Unavailable when
    something killed it."""
    command = [sys.executable, "-P", "-m", "engine.jobs", *arguments]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as child:
            try:
                done = _listen(child, talk)
            finally:
                _end(child)
                talk.spend(Spent(device_seconds=time.monotonic() - began))
        log.seek(0)
        return _concluded(child.returncode, done, log.read()[-TAIL_CHARACTERS:].strip())


def _concluded(status: int, done: dict[str, object] | None, tail: str) -> dict[str, object]:
    if status < 0:
        raise Unavailable(f"the job's process was ended by signal {-status}: {tail}")
    if status != 0 or done is None:
        raise ModelFailure(f"the job's process ended with status {status}: {tail}")
    return done


def _listen(child: "subprocess.Popen[str]", talk: Talk) -> dict[str, object] | None:
    """Until the child has closed its output. Raises Interrupted."""
    assert child.stdout is not None
    lines: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
    done = None
    while True:
        talk.check()
        try:
            line = lines.get(timeout=LOOK_SECONDS)
        except Empty:
            continue
        if line is None:
            child.wait()
            return done
        event = msgspec.json.decode(line, type=dict[str, object])
        if event.pop("event") == "done":
            done = event
        else:
            talk.report(float(str(event["fraction"])), str(event["detail"]))


def _read(source: IO[str], lines: "SimpleQueue[str | None]") -> None:
    for line in source:
        lines.put(line)
    lines.put(None)


def _end(child: "subprocess.Popen[str]") -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
