"""Writes down again and again what the engine of a device says of itself, for the people who look at nodes."""

import logging
import threading
from collections.abc import Callable

from core.errors import MillraceError
from core.protocol import Hello
from db.connection import Database
from db.native import nodes

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0


class Telemetry:
    """A thread of a worker; `close()` ends it. PostgreSQL may be away: the next turn says it again."""

    def __init__(self, database: Database, node: str, device: str, hello: Callable[[], Hello | None]) -> None:
        """hello: what the engine said last; None while it is away."""
        self._database = database
        self._node = node
        self._device = device
        self._hello = hello
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            hello = self._hello()
            if hello is not None:
                self._write(hello)
            if self._is_closing.wait(INTERVAL_SECONDS):
                return

    def _write(self, hello: Hello) -> None:
        try:
            with self._database.begin() as session:
                nodes.report(session, node=self._node, device=self._device, hello=hello)
        except MillraceError as error:
            logger.warning("could not write down how %s is: %s", self._device, error)
