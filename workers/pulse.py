"""The sign of life of a Celery worker: given while its consumer's loop turns.

The loop also stands still while the broker is away, which is nobody's fault: then the pulse goes on without it, so that
no worker is killed with its running chunks because Redis is being restarted.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import bootsteps
from redis import Redis
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0
TURN_SECONDS = 2.0
# Longer than Celery waits between two attempts to connect again.
STANDSTILL_SECONDS = 60.0

_turned_at = [time.monotonic()]


class LoopTurns(bootsteps.StartStopStep):  # type: ignore[misc]
    """Notes when the loop of the worker's timers and sockets turned last."""

    requires = ("celery.worker.components:Timer",)

    def start(self, worker: Any) -> None:
        worker.timer.call_repeatedly(TURN_SECONDS, _note_turn)


def _note_turn() -> None:
    _turned_at[0] = time.monotonic()


def loop_turned_at() -> float:
    """Monotonic seconds."""
    return _turned_at[0]


class Pulse:
    """A thread that touches `path`; `close()` ends it."""

    def __init__(
        self,
        path: Path,
        redis: Redis,
        turned_at: Callable[[], float] = loop_turned_at,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._redis = redis
        self._turned_at = turned_at
        self._clock = clock
        self._seen_broker_at = clock()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join()

    def beat(self) -> None:
        """Once: touches the file unless the loop stands still for no reason."""
        if self._is_well():
            self._path.touch()
        else:
            logger.critical(
                "this worker takes no messages any more, though the broker is there; it should be restarted"
            )

    def _is_well(self) -> bool:
        now = self._clock()
        if now - self._turned_at() < STANDSTILL_SECONDS:
            return True
        if not self._is_broker_there():
            self._seen_broker_at = now
        return now - self._seen_broker_at < STANDSTILL_SECONDS

    def _is_broker_there(self) -> bool:
        try:
            return bool(self._redis.ping())
        except RedisError:
            return False

    def _run(self) -> None:
        while True:
            self.beat()
            if self._is_closing.wait(INTERVAL_SECONDS):
                return
