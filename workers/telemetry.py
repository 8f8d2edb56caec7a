"""Writes down again and again what the engine of a device says of itself, for the people who look at nodes."""

import logging
from collections.abc import Callable

from core.errors import MillraceError
from core.protocol import Hello
from db.connection import Database
from db.native import nodes
from workers.presence import Repeated

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0


class Telemetry(Repeated):
    """PostgreSQL may be away: the next turn says it again."""

    def __init__(self, database: Database, node: str, device: str, hello: Callable[[], Hello | None]) -> None:
        """hello: what the engine said last; None while it is away."""
        super().__init__("telemetry")
        self._database = database
        self._node = node
        self._device = device
        self._hello = hello

    def turn(self) -> float:
        hello = self._hello()
        if hello is not None:
            self._write(hello)
        return INTERVAL_SECONDS

    def _write(self, hello: Hello) -> None:
        try:
            with self._database.begin() as session:
                nodes.report(session, node=self._node, device=self._device, hello=hello)
        except MillraceError as error:
            logger.warning("could not write down how %s is: %s", self._device, error)
