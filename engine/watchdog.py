"""Ends the process when the main loop is stuck: in a kernel that never returns, in code that never lets go of the GIL.

Two mechanisms. A thread adds up the time between its looks and, over the limit, writes all stacks and a last line to
the log; a process that was stopped meanwhile (SIGSTOP, a paused container) is not charged for that. Where the GIL is
held, that thread cannot run: then the kernel's own timer, which does count such time and so waits much longer, ends the
process, after faulthandler has written the stacks from within the signal. Either way the process dies of SIGALRM, by
which its supervisor knows this end from every other one; it starts the engine again.
"""

import faulthandler
import logging
import math
import signal
import threading
import time

logger = logging.getLogger(__name__)

_TIMER_FACTOR = 3.0  # of the limit: the thread comes first, and a process that was stopped for less lives
_LOOKS_PER_LIMIT = 20
_REARM_SECONDS = 1.0  # a system call per step would cost more than the rest of all this


class Watchdog:
    """limit_seconds: 0 watches nothing but still knows the time. Made and used on the main thread."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._began = math.inf
        self._armed = -math.inf

    def start(self) -> None:
        """SIGALRM and ITIMER_REAL belong to it from now on."""
        if not self._limit_seconds:
            return
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)  # then the default: to die of it
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self) -> None:
        """A turn of the loop begins, and with it the time that it may take."""
        self._began = time.monotonic()
        if self._limit_seconds and self._began - self._armed >= _REARM_SECONDS:
            self._armed = self._began
            signal.setitimer(signal.ITIMER_REAL, self._limit_seconds * _TIMER_FACTOR + _REARM_SECONDS)

    def rest(self) -> None:
        """The loop waits for something to do, as long as it takes."""
        self._began = math.inf
        if self._armed > -math.inf:
            self._armed = -math.inf
            signal.setitimer(signal.ITIMER_REAL, 0)

    @property
    def age_seconds(self) -> float:
        """How long the turn under way has lasted, 0 between two. From any thread."""
        return max(0.0, time.monotonic() - self._began)

    def _watch(self) -> None:
        self._wait_until_stuck()
        faulthandler.dump_traceback(all_threads=True)
        logger.critical(
            "one step has taken %.1f s, more than --max-step-seconds %g allows: the engine is stuck, as shown above, "
            "and ends; started again, it gets the requests that were in flight again",
            self.age_seconds, self._limit_seconds,
        )  # fmt: skip
        logging.shutdown()
        faulthandler.unregister(signal.SIGALRM)
        signal.raise_signal(signal.SIGALRM)

    def _wait_until_stuck(self) -> None:
        pause, interval = threading.Event(), min(1.0, self._limit_seconds / _LOOKS_PER_LIMIT)
        turn, worked, looked = self._began, 0.0, time.monotonic()
        while worked < self._limit_seconds:
            pause.wait(interval)
            before, looked = looked, time.monotonic()
            if self._began != turn or math.isinf(turn):
                turn, worked = self._began, 0.0
            else:
                worked += min(looked - before, 2 * interval)  # more was not for this thread to see: it was stopped
