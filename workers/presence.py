"""Says again and again that the models of a device are served, so that those of a node that is gone are not offered for
ever. `Repeated` is what every thread of that kind has in common."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from core.errors import MillraceError
from db import models
from db.connection import Database

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 30.0
HURRY_SECONDS = 1.0  # while the engine has not said yet what its models are


class Repeated(ABC):
    """What a thread of a worker does again and again, from `start()` to `close()`."""

    def __init__(self, name: str) -> None:
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join()

    @abstractmethod
    def turn(self) -> float:
        """Once. Returns the seconds until the next turn."""

    def _run(self) -> None:
        while not self._is_closing.wait(self.turn()):
            continue


class Presence(Repeated):
    """PostgreSQL may be away: the next turn says it again."""

    def __init__(
        self,
        database: Database,
        node: str,
        device: str,
        kinds: Callable[[], Mapping[str, str]],
        *,
        hurry_seconds: float = HURRY_SECONDS,
    ) -> None:
        """kinds: name -> kind of the models of which the engine knows it."""
        super().__init__("presence")
        self._database = database
        self._node = node
        self._device = device
        self._kinds = kinds
        self._hurry_seconds = hurry_seconds

    def turn(self) -> float:
        kinds = self._kinds()
        self._say(kinds)
        return INTERVAL_SECONDS if kinds else self._hurry_seconds

    def _say(self, kinds: Mapping[str, str]) -> None:
        try:
            with self._database.begin() as session:
                models.refresh(session, node=self._node, device=self._device, kinds=kinds)
        except MillraceError as error:
            logger.warning("could not say that %s is there: %s", self._device, error)
