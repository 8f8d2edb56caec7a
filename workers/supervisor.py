"""Starts parts in order, watches them, restarts the ones that die, and stops them in the opposite order.

Everything happens in the thread that calls it, which must be the main one (`workers.children` says why): `launch`
adds parts, `wait_ready` drives them until they are up, `run` keeps them up until `request_stop`, `stop_all` ends them.
A part that fails before it was ever ready is an error of the installation, so it ends everything; being killed is none,
a few times. A part that dies later is restarted, for ever, with a growing delay, and so is one that lives but gives no
sign of life.
"""

import enum
import logging
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from core.errors import Interrupted, MillraceError, Unavailable
from workers.children import Child, describe_exit, kill_tree, log_tail, spawn
from workers.instance import Instance
from workers.part import Account, Backoff, Part, check_order, stages

__all__ = ["Account", "Backoff", "Part", "Supervisor"]

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.02
IDLE_TICK_SECONDS = 0.2
ALIVE_INTERVAL_SECONDS = 5.0
KILLED_STARTS = 3  # how often a part may be killed by a signal before it is ready


class _Phase(enum.Enum):
    WAITING = "waiting"  # for the parts it comes after, or for its restart
    STARTING = "starting"  # runs, not ready yet
    READY = "ready"


class _Watched:
    """One part and what is known about its process."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.phase = _Phase.WAITING
        self.child: Child | None = None
        self.was_ready = False
        self.num_deaths = 0
        self.started_at = 0.0
        self.start_at = 0.0
        self.alive_at = 0.0  # when it said so last
        self.asked_at = 0.0


class Supervisor:
    """say: prints one line for people.  clock: monotonic seconds.  chance: [0, 1)."""

    def __init__(
        self,
        instance: Instance,
        say: Callable[[str], None],
        *,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        alive_interval_seconds: float = ALIVE_INTERVAL_SECONDS,
    ) -> None:
        self._instance = instance
        self._say = say
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._chance = chance
        self._alive_interval_seconds = alive_interval_seconds
        self._watched: dict[str, _Watched] = {}
        self._launched: list[list[str]] = []  # groups that stop together, in the order in which they started
        self._num_stop_requests = 0

    @property
    def is_stopping(self) -> bool:
        return self._num_stop_requests > 0

    def request_stop(self) -> None:
        """Safe in a signal handler. The second request kills what has not ended yet."""
        self._num_stop_requests += 1

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and, unless nohup said otherwise, SIGHUP request a stop while this is open."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)

        def request(_number: int, _frame: FrameType | None) -> None:
            self.request_stop()

        before = {number: signal.signal(number, request) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def launch(self, parts: Sequence[Part]) -> None:
        """Add parts and start the ones that need not wait. All of them are stopped before any that was launched
        earlier. Raises ConfigurationError when one cannot be started."""
        check_order([*(watched.part for watched in self._watched.values()), *parts])
        self._watched.update({part.name: _Watched(part) for part in parts})
        self._launched += stages([replace(part, after=_within(part.after, parts)) for part in parts])
        self.tick()

    def wait_ready(self, names: Sequence[str] | None = None, on_tick: Callable[[], None] | None = None) -> None:
        """Until these parts, or all of them, are ready. Raises Unavailable when any part fails first, Interrupted when
        a stop was requested."""
        waited = tuple(self._watched) if names is None else tuple(names)
        while not all(self._watched[name].phase is _Phase.READY for name in waited):
            if self.is_stopping:
                raise Interrupted("stopped before everything was ready")
            if on_tick is not None:
                on_tick()
            time.sleep(TICK_SECONDS)
            self.tick()

    def run(self) -> None:
        """Keep the parts up until a stop is requested."""
        while not self.is_stopping:
            self.tick()
            time.sleep(IDLE_TICK_SECONDS if self._is_settled() else TICK_SECONDS)

    def tick(self) -> None:
        """Look at every part once: reap, probe, start what is due."""
        for watched in self._watched.values():
            if watched.child is not None and watched.phase is not _Phase.WAITING:
                self._look_at(watched, watched.child)
            elif self._is_due(watched):
                self._start(watched)

    def stop_all(self) -> None:
        """End every part, last started first. Does nothing the second time."""
        self._num_stop_requests = max(1, self._num_stop_requests)
        for names in reversed(self._launched):
            running = [self._watched[name] for name in names if _is_running(self._watched[name])]
            for watched in running:
                self._say(f"  stopping {watched.part.name}")
                _signal_child(watched)
            self._await_end(running)

    def _is_settled(self) -> bool:
        return all(watched.phase is _Phase.READY for watched in self._watched.values())

    def _is_due(self, watched: _Watched) -> bool:
        if watched.phase is not _Phase.WAITING or self.is_stopping or self._clock() < watched.start_at:
            return False
        # a restart waits for nobody: what it needs may be down as well, and it can wait for that itself
        return watched.was_ready or all(self._watched[name].phase is _Phase.READY for name in watched.part.after)

    def _start(self, watched: _Watched) -> None:
        watched.started_at = self._clock()
        try:
            if watched.part.prepare is not None:
                watched.part.prepare()
            watched.child = spawn(watched.part, self._instance)
        except (MillraceError, OSError) as error:
            if not watched.was_ready:
                raise
            self._retry_later(watched, f"cannot be started: {error}")
            return
        watched.phase = _Phase.STARTING

    def _look_at(self, watched: _Watched, child: Child) -> None:
        status = child.process.poll()
        if watched.part.runs_once and (status == 0 or watched.phase is _Phase.READY):
            self._become_ready(watched)
        elif status is not None:
            self._bury(watched, child, f"ended with {describe_exit(status)}", was_killed=status < 0)
        elif watched.phase is _Phase.STARTING:
            self._probe(watched, child)
        else:
            self._check_alive(watched, child)

    def _probe(self, watched: _Watched, child: Child) -> None:
        try:
            answers = self._answers(watched.part)
        except MillraceError as error:  # it says itself that it never will
            self._bury(watched, child, f"cannot become ready: {error.message}")
            return
        if answers:
            self._become_ready(watched)
        elif self._up_seconds(watched) > watched.part.ready_seconds:
            self._bury(watched, child, f"was not ready within {watched.part.ready_seconds:g} s")

    def _check_alive(self, watched: _Watched, child: Child) -> None:
        """Asked before it is judged: whoever was suspended together with its parts finds them silent, but well."""
        part, now = watched.part, self._clock()
        if watched.num_deaths and self._backoff.is_stable(self._up_seconds(watched)):
            watched.num_deaths = 0
        if part.alive is None or now - watched.asked_at < self._alive_interval_seconds:
            return
        watched.asked_at = now
        if part.alive():
            watched.alive_at = now
        elif now - watched.alive_at > part.alive_seconds:
            self._bury(watched, child, f"hangs: no sign of life for {part.alive_seconds:g} s")

    def _answers(self, part: Part) -> bool:
        return not part.runs_once and (part.ready is None or part.ready())

    def _up_seconds(self, watched: _Watched) -> float:
        return self._clock() - watched.started_at

    def _become_ready(self, watched: _Watched) -> None:
        if watched.phase is _Phase.READY:
            return
        watched.phase = _Phase.READY
        watched.alive_at = self._clock()
        again = " (again)" if watched.was_ready else ""
        watched.was_ready = True
        self._say(report_line("ok", watched.part.name, watched.part.note + again, self._up_seconds(watched)))

    def _bury(self, watched: _Watched, child: Child, reason: str, *, was_killed: bool = False) -> None:
        kill_tree(child.process)
        watched.child = None
        watched.phase = _Phase.WAITING
        tail = log_tail(self._instance.log_path(watched.part.name), child.log_offset)
        if not watched.was_ready and not (was_killed and watched.num_deaths < KILLED_STARTS):
            raise Unavailable(f"{watched.part.name} {reason}. The end of {self._log_name(watched)}:\n{tail}")
        self._retry_later(watched, reason, tail)

    def _retry_later(self, watched: _Watched, reason: str, tail: str = "") -> None:
        watched.num_deaths += 1
        delay = self._backoff.delay_seconds(watched.num_deaths, self._chance())
        watched.start_at = self._clock() + delay
        lines = f". The end of {self._log_name(watched)}:\n{tail}" if tail else ""
        self._say(f"  {watched.part.name} {reason}; it is started again in {delay:.1f} s{lines}")

    def _log_name(self, watched: _Watched) -> str:
        return str(self._instance.log_path(watched.part.name))

    def _await_end(self, stopping: Sequence[_Watched]) -> None:
        begin = self._clock()
        for watched in stopping:
            assert watched.child is not None
            while watched.child.process.poll() is None and not self._is_out_of_patience(watched.part, begin):
                time.sleep(TICK_SECONDS)
            if watched.child.process.poll() is None:
                self._say(f"  killing {watched.part.name}")
            kill_tree(watched.child.process)

    def _is_out_of_patience(self, part: Part, begin: float) -> bool:
        return self._num_stop_requests > 1 or self._clock() - begin > part.grace_seconds


def report_line(word: str, name: str, note: str, seconds: float) -> str:
    return f"  {word:<4}{name:<16}{note:<40}{seconds:6.1f} s"


def _within(names: Sequence[str], parts: Sequence[Part]) -> tuple[str, ...]:
    return tuple(part.name for part in parts if part.name in names)


def _is_running(watched: _Watched) -> bool:
    return watched.child is not None and watched.child.process.poll() is None


def _signal_child(watched: _Watched) -> None:
    assert watched.child is not None
    watched.child.process.send_signal(watched.part.stop_signal)
