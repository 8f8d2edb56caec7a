"""Keeps the leases of a worker while its threads run chunks, and tells them what they must know at once: that a lease
is lost, that a job is being stopped, that a person paused the model or the queue.

One thread and one statement for all leases: a look twice a second, which writes nothing, and a renewal every third of a
lease. A thread that has not said for long that it is alive is taken for stuck, and its lease is left to expire.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from core.errors import Unavailable
from db import chunks
from db.chunks import Held, Lease, Standing
from db.connection import Database

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
RENEWALS_PER_LEASE = 3
STUCK_SECONDS = 120.0


class Watch:
    """One held lease. The flags are set by the keeper; `touch` is called by the thread that runs the chunk."""

    def __init__(self, lease: Lease, clock: Callable[[], float]) -> None:
        self.held = Held(lease.chunk_id, lease.attempt)
        self.is_lost = False
        self.is_stopping = False
        self.is_paused = False
        self._clock = clock
        self._alive_at = clock()

    def touch(self) -> None:
        self._alive_at = self._clock()

    def is_stuck(self) -> bool:
        return self._clock() - self._alive_at > STUCK_SECONDS

    def note(self, standing: Standing | None) -> None:
        """None: the lease is somebody else's, or the chunk has ended."""
        if standing is None:
            self.is_lost = True
        else:
            self.is_stopping = self.is_stopping or standing.is_stopping
            self.is_paused = standing.is_paused


class LeaseKeeper:
    """`start()` before use, `close()` at the end; the other methods may be called from any thread."""

    def __init__(
        self,
        database: Database,
        owner: str,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._renewed_at = clock()
        self._watches: set[Watch] = set()
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._is_away = False
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join()

    def hold(self, lease: Lease) -> Watch:
        watch = Watch(lease, self._clock)
        with self._lock:
            self._watches.add(watch)
        return watch

    def release(self, watch: Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _run(self) -> None:
        interval = min(LOOK_SECONDS, self._lease_seconds / (2 * RENEWALS_PER_LEASE))
        try:
            while not self._is_closing.wait(interval):
                self.look()
        except Exception:
            logger.critical("leases cannot be kept any more; this worker ends and is started again", exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def look(self) -> None:
        """One turn: notes how every lease stands, and renews them when it is time."""
        with self._lock:
            watches = [watch for watch in self._watches if not watch.is_stuck()]
        if not watches:
            return
        try:
            standings = self._ask([watch.held for watch in watches])
        except Unavailable as error:
            if not self._is_away:
                logger.warning("leases cannot be renewed: %s", error, extra={"event": "lease.away"})
            self._is_away = True
            return
        self._is_away = False
        for watch in watches:
            watch.note(standings.get(watch.held))

    def _ask(self, held: list[Held]) -> dict[Held, Standing]:
        now = self._clock()
        is_due = now - self._renewed_at >= self._lease_seconds / RENEWALS_PER_LEASE
        with self._database.begin() as session:
            if is_due:
                found = chunks.renew(session, self._owner, held, self._lease_seconds)
            else:
                found = chunks.standing(session, self._owner, held)
        if is_due:
            self._renewed_at = now
        return {standing.held: standing for standing in found}
