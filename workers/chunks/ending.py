"""Writes what an execution holds, and gives back what it leaves, under its lease."""

import logging
import threading

from core.errors import LeaseLost, Unavailable
from core.job import ServiceClass
from db import chunks, online
from db.access import usage
from db.connection import Database
from workers.chunks.execution import Execution

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


class Writer:
    """stopping: set when the worker drains; a database that is away is waited for until then."""

    def __init__(self, database: Database, stopping: threading.Event) -> None:
        self._database = database
        self._stopping = stopping

    def write(self, execution: Execution) -> None:
        """Waits for a database that is away: the answers are worth more than the wait. Raises LeaseLost."""
        while True:
            try:
                return self._write(execution)
            except Unavailable as error:
                logger.warning("chunk %d waits to write: %s", execution.lease.chunk_index, error)
                execution.watch.touch()
                if self._stopping.wait(RETRY_SECONDS):
                    raise

    def _write(self, execution: Execution) -> None:
        """An online job ends with its chunk, in the same transaction, as people wait for the worker."""
        lease = execution.lease
        with self._database.begin() as session:
            result = chunks.write(session, lease, execution.finished, execution.retries)
            is_online = lease.service_class == ServiceClass.ONLINE
            is_completed = is_online and result.is_done and online.complete(session, lease.job_id)
        execution.note_written(result, is_completed=is_completed)

    def end(self, execution: Execution) -> bool:
        """Writes what is finished and gives the rest back. True when nobody has to run the chunk again. What the rest
        had used is accounted where its owner ended it (`spent`); what runs again is charged to nobody. Raises
        LeaseLost."""
        if execution.has_unwritten and not execution.is_done:
            self.write(execution)
        if execution.is_done:
            return True
        execution.interrupt()
        lease = execution.lease
        with self._database.begin() as session:
            if execution.waits_for_retries:
                chunks.delay(session, lease)
            else:
                chunks.hand_back(session, lease, execution.crash, crash_width=execution.crash_width)
                usage.note(session, lease.job_id, execution.spent)
        logger.info(
            "chunk %d of job %s %s with %d requests unfinished",
            lease.chunk_index,
            lease.job_public_id,
            "waits for its next tries" if execution.waits_for_retries else "handed back",
            execution.num_unfinished,
            extra={"event": "chunk.handed_back", "job": lease.job_public_id},
        )
        return execution.is_stopping


def note_lost(error: LeaseLost, execution: Execution) -> None:
    logger.warning("%s", error, extra={"event": "chunk.lease_lost", "job": execution.lease.job_public_id})
