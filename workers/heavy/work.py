"""What a kind of heavy job is to its runner: something that works in a thread of its own, says how far it is, and ends
soon after it was told to stop. Knows no database."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from core.errors import Interrupted
from core.protocol import Spent
from db.tables import ArtifactRow


@dataclass(frozen=True, slots=True)
class Task:
    """parameters: JSON, a struct of `core.heavy`."""

    job_public_id: str
    tenant: str
    model: str
    parameters: str


@dataclass(slots=True)
class Talk:
    """Between a work and its keeper. Each attribute is written by one of them: `stop` by the keeper, the others by the
    work. spent: of tokens and of the device, until now."""

    stop: threading.Event = field(default_factory=threading.Event)
    fraction: float = 0.0
    message: str = "started"
    spent: Spent = field(default_factory=Spent)

    def report(self, fraction: float, message: str) -> None:
        """Raises Interrupted when the work is to stop."""
        self.fraction, self.message = fraction, message
        self.check()

    def spend(self, more: Spent) -> None:
        spent = self.spent
        self.spent = Spent(
            spent.prompt_tokens + more.prompt_tokens,
            spent.completion_tokens + more.completion_tokens,
            spent.cached_tokens + more.cached_tokens,
            spent.device_seconds + more.device_seconds,
        )

    def check(self) -> None:
        """Raises Interrupted when the work is to stop."""
        if self.stop.is_set():
            raise Interrupted("the job was stopped")


@dataclass(frozen=True, slots=True)
class Result:
    figures: Mapping[str, object]
    artifact: ArtifactRow | None = None


class Work(Protocol):
    def __call__(self, task: Task, talk: Talk) -> Result:
        """Raises Interrupted soon after `talk.stop` is set; another MillraceError where the job cannot be done, a
        retryable one where another try may succeed."""
        ...
