"""Commits online requests, those that come at the same moment together, and wakes workers for them: what a request
costs is mostly the way to PostgreSQL and to the broker, and many go together at the price of one.
"""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from api.broker import Broker
from core.errors import InvalidRequest, MillraceError
from db import jobs
from db.connection import Database
from db.jobs import NewOnlineRequest
from db.tables import JobRow

logger = logging.getLogger(__name__)

MAX_TOGETHER = 64
REQUESTS_PER_MESSAGE = 4  # a message wakes one worker, which claims more than it was woken for


@dataclass(frozen=True, slots=True)
class _Asked:
    request: NewOnlineRequest
    made: "Future[JobRow]" = field(default_factory=Future)


class Intake:
    """`start`, then `put` from coroutines; `close` at the end commits what is left."""

    def __init__(self, database: Database, broker: Broker) -> None:
        self._database = database
        self._broker = broker
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def put(self, request: NewOnlineRequest) -> JobRow:
        """The job, when it is committed. Raises as `Database.begin`."""
        asked = _Asked(request)
        self._asked.put(asked)
        return await asyncio.wrap_future(asked.made)

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._asked.get()) is not None:
            gathered, is_last = self._gather(first)
            self._commit([asked for asked in gathered if asked.made.set_running_or_notify_cancel()])
            if is_last:
                return

    def _gather(self, first: _Asked) -> tuple[list[_Asked], bool]:
        gathered = [first]
        try:
            while len(gathered) < MAX_TOGETHER:
                asked = self._asked.get_nowait()
                if asked is None:
                    return gathered, True
                gathered.append(asked)
        except Empty:
            pass
        return gathered, False

    def _commit(self, gathered: Sequence[_Asked]) -> None:
        """One that PostgreSQL cannot store takes nobody else along."""
        if not gathered:
            return
        try:
            made = jobs.create_many_online(self._database, [asked.request for asked in gathered])
        except InvalidRequest as error:
            if len(gathered) > 1:
                for asked in gathered:
                    self._commit([asked])
                return
            gathered[0].made.set_exception(error)
        except Exception as error:  # is raised where somebody waits for it
            if not isinstance(error, MillraceError):
                logger.exception("%d online requests could not be committed", len(gathered))
            for asked in gathered:
                asked.made.set_exception(error)
        else:
            self._wake_up(made)
            for asked, job in zip(gathered, made, strict=True):
                asked.made.set_result(job)

    def _wake_up(self, made: Sequence[JobRow]) -> None:
        seen: Counter[str | None] = Counter()
        try:
            for job in made:
                if seen[job.model] % REQUESTS_PER_MESSAGE == 0:
                    self._broker.wake_up(job)
                seen[job.model] += 1
        except Exception:  # what is committed is answered, and this thread serves everybody else
            logger.exception("workers were not woken for %d online requests; the dispatcher does it", len(made))
