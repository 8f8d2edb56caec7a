"""What tasks need, behind one door: `workers.boot` installs the real objects, tests install others.

A chunk runner is there only in the online and batch workers of a device, a heavy runner in its heavy worker.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from redis import Redis

from core.errors import ConfigurationError
from core.protocol import Hello
from core.settings import Settings
from db.connection import Database
from db.files import FileStore
from tasks.messages import Messages
from tasks.relay import End, Piece


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """How a claimed chunk ended: `is_done` when it has no unfinished request left; `is_closed` when nobody runs it
    again, because it is done or its job is being stopped. `is_completed`: its job, an online one, has ended with it;
    `end` is what came of it, where this run saw all. `is_streamed`: somebody may read along. `lost_model`: the one
    whose engine died meanwhile."""

    job_id: int
    job_public_id: str
    is_done: bool
    is_closed: bool
    lost_model: str | None = None
    is_completed: bool = False
    end: End | None = None
    is_streamed: bool = True


Close = Callable[[Sequence[ChunkRun]], None]


class ChunkRunner(Protocol):
    def run_batch(self) -> ChunkRun | None:
        """Claims the best waiting chunk of a batch and runs it. None when nothing waits or no engine is ready."""
        ...

    def serve_online(self, close: Close) -> None:
        """Says that online requests may wait, and returns at once. They are claimed and run on a thread of the runner,
        which tells `close` how they ended; nothing, where it ends itself and leaves some that wait."""
        ...

    def model_kinds(self) -> dict[str, str]:
        """Model -> kind, as in `core.protocol.ModelStatus`, where the engine knows it."""
        ...

    def hello(self) -> Hello | None:
        """What the engine said of itself last; None while it is away."""
        ...

    def close(self) -> None:
        """Lets go of the engine."""
        ...


@dataclass(frozen=True, slots=True)
class HeavyRun:
    """How a claimed job ended. `is_stopped`: it was cancelled or has expired, and is to be finalized."""

    job_public_id: str
    is_stopped: bool


class HeavyRunner(Protocol):
    def run(self) -> HeavyRun | None:
        """Claims the best waiting job of this node that is no inference, and runs it. None when nothing waits."""
        ...


class Relay(Protocol):
    def announce(self, job_public_id: str, end: End | None = None, *, is_streamed: bool = True) -> None:
        """Tells whoever waits for an online job that its outcome is committed, and what it is; where it was not
        streamed, nobody reads along. Fails open: the waiter looks again."""
        ...

    def publish(self, job_public_id: str, piece: Piece) -> None:
        """Tells whoever reads along how an answer grows. Never waits; what cannot be told is dropped."""
        ...

    def interrupt(self, job_public_id: str, attempt: int) -> None:
        """Tells whoever reads along that nothing more comes of this attempt of the chunk. Never waits."""
        ...

    def close(self) -> None:
        """Tells what has gathered."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    database: Database
    files: FileStore
    redis: Redis
    messages: Messages
    relay: Relay
    chunks: ChunkRunner | None = None
    heavy: HeavyRunner | None = None

    def close(self) -> None:
        if self.chunks is not None:
            self.chunks.close()
        self.relay.close()
        self.redis.close()
        self.database.close()


_installed: list[Services] = []


def install(services: Services) -> None:
    """Replaces what was installed before."""
    _installed[:] = [services]


def current() -> Services:
    """Raises ConfigurationError in a process whose composition root installed nothing."""
    if not _installed:
        raise ConfigurationError("no services are installed: start workers with `celery -A workers.boot worker …`")
    return _installed[0]


def uninstall() -> None:
    """Closes and forgets what was installed."""
    while _installed:
        _installed.pop().close()
