"""Runs heavy jobs: claims one, has its work done in a thread, and keeps its lease meanwhile: every half second progress
is written, which renews the lease and tells whether the job is being stopped."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from sqlalchemy.orm import Session

from core.errors import LeaseLost, MillraceError, ModelFailure, Unavailable
from core.job import JobKind
from db import chunks
from db.access import usage
from db.access.usage import Used
from db.chunks import Crash
from db.connection import Database
from db.native import heavy
from db.native.heavy import Claimant, Claimed
from tasks.services import HeavyRun
from workers.heavy.work import Result, Talk, Task, Work

logger = logging.getLogger(__name__)

KEEP_SECONDS = 0.5
MAX_ATTEMPTS = 3

_T = TypeVar("_T")


class HeavyJobRunner:
    def __init__(
        self, database: Database, works: Mapping[JobKind, Work], claimant: Claimant, stopping: threading.Event
    ) -> None:
        self._database = database
        self._works = works
        self._claimant = claimant
        self._stopping = stopping

    def run(self) -> HeavyRun | None:
        if self._stopping.is_set():
            return None
        with self._database.begin() as session:
            claimed = heavy.claim(session, self._claimant)
        if claimed is None:
            return None
        execution = _Execution(self._database, self._works[JobKind(claimed.kind)], claimed, self._stopping)
        return execution.give_up() if claimed.num_attempts > MAX_ATTEMPTS else execution.run()


class _Execution:
    """One claimed job. The keeper's loop is `run`; the work is done in `_thread`."""

    def __init__(self, database: Database, work: Work, claimed: Claimed, stopping: threading.Event) -> None:
        self._database = database
        self._work = work
        self._claimed = claimed
        self._lease = claimed.lease
        self._stopping = stopping
        self._talk = Talk()
        self._ended = threading.Event()
        self._result: Result | None = None
        self._error: MillraceError | None = None
        self._is_job_stopping = False
        self._thread = threading.Thread(target=self._do, name=f"job {claimed.lease.job_public_id}", daemon=True)

    def give_up(self) -> HeavyRun:
        """Of a job whose workers died: it ends without being tried."""
        self._error = ModelFailure(f"the worker that ran the job died {MAX_ATTEMPTS} times, so it is not tried again")
        self._conclude()
        return HeavyRun(self._lease.job_public_id, self._is_job_stopping)

    def run(self) -> HeavyRun:
        self._thread.start()
        try:
            while not self._ended.wait(KEEP_SECONDS):
                self._keep()
        except LeaseLost as error:
            self._lost(error)
        else:
            self._conclude()
        finally:
            self._talk.stop.set()
            self._thread.join()
        return HeavyRun(self._lease.job_public_id, self._is_job_stopping)

    def _lost(self, error: LeaseLost) -> None:
        logger.warning("%s", error, extra={"event": "chunk.lease_lost", "job": self._lease.job_public_id})

    def _do(self) -> None:
        lease = self._lease
        task = Task(lease.job_public_id, lease.tenant, lease.model, self._claimed.parameters)
        try:
            self._result = self._work(task, self._talk)
        except MillraceError as error:
            self._error = error
        except Exception as error:  # a fault of ours must not leave the job running for ever
            logger.exception("job %s failed by a fault of ours", lease.job_public_id)
            self._error = ModelFailure(f"the job failed by a fault of ours: {type(error).__name__}: {error}")
        finally:
            self._ended.set()

    def _keep(self) -> None:
        """Raises LeaseLost. A database that is away is asked again: the work goes on as long as the lease may hold."""
        try:
            with self._database.begin() as session:
                state = heavy.report(session, self._lease, self._talk.fraction, self._talk.message)
        except Unavailable as error:
            logger.warning("job %s could not say how far it is: %s", self._lease.job_public_id, error)
            return
        self._is_job_stopping = state.is_stopping
        if state.is_stopping or self._stopping.is_set():
            self._talk.stop.set()

    def _conclude(self) -> None:
        try:
            self._end()
        except LeaseLost as error:
            self._lost(error)

    def _end(self) -> None:
        lease, error = self._lease, self._error
        result = self._result
        if result is not None:
            document = msgspec.json.encode(result.figures).decode()
            has_ended = self._patiently(lambda: self._succeed(document, result))
        elif self._talk.stop.is_set():
            self._patiently(lambda: self._hand_back(None))
            return
        elif error is not None and error.is_retryable and self._claimed.num_attempts < MAX_ATTEMPTS:
            logger.warning("job %s runs again: %s", lease.job_public_id, error)
            self._patiently(lambda: self._hand_back(Crash(None, width=1)))
            return
        else:
            assert error is not None
            code, message = error.code, error.message
            has_ended = self._patiently(lambda: self._fail(code, message))
        self._is_job_stopping = not has_ended
        logger.info("job %s ended", lease.job_public_id, extra={"event": "job.ended", "job": lease.job_public_id})

    def _succeed(self, document: str, result: Result) -> bool:
        """A result that cannot be kept will not be kept the next time either: the job fails."""
        try:
            with self._database.begin() as session:
                self._note(session, num_requests=1)
                return heavy.succeed(session, self._lease, document, result.artifact)
        except MillraceError as error:
            if error.is_retryable or isinstance(error, LeaseLost):
                raise
            logger.warning("the result of job %s cannot be kept: %s", self._lease.job_public_id, error)
            return self._fail(error.code, f"the result cannot be kept: {error}")

    def _fail(self, code: str, message: str) -> bool:
        with self._database.begin() as session:
            self._note(session, num_requests=1, num_failed=1)
            return heavy.fail(session, self._lease, code, message)

    def _hand_back(self, crash: Crash | None) -> None:
        """What a job that runs again had used is charged to nobody; what its owner has ended counts."""
        with self._database.begin() as session:
            chunks.hand_back(session, self._lease, crash)
            if self._is_job_stopping:
                self._note(session)

    def _note(self, session: Session, *, num_requests: int = 0, num_failed: int = 0) -> None:
        """What the attempt that ended the job has used; the job itself counts as a request when it has an outcome."""
        used = Used(num_requests, num_failed)
        used.add(self._talk.spent)
        usage.note(session, self._lease.job_id, used)

    def _patiently(self, action: Callable[[], _T]) -> _T:
        """Waits for a database that is away: the result is worth more than the wait. Raises Unavailable at shutdown."""
        while True:
            try:
                return action()
            except Unavailable as error:
                logger.warning("job %s waits to write its end: %s", self._lease.job_public_id, error)
                if self._stopping.wait(KEEP_SECONDS):
                    raise
