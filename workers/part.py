"""A part: one child process of a supervisor, described. And the pure decisions about parts: in which order they
start and stop, and how long to wait before a dead one is started again. No processes here.
"""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Account:
    """An operating system user to run as; only root can."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Part:
    """
    env: added to the supervisor's own environment; None takes a variable away.
    cwd: None is an empty directory of its own, so that no file of the user's can shadow a module of ours.
    prepare: called before every start, first or repeated; what it raises is the reason why the part cannot start.
    ready: asked again and again until it says True, so it must return within a second; None is ready once started.
        A MillraceError says that it never will be.
    alive: asked again and again while the part is ready, and must return within a second: a part that has not said
        True for `alive_seconds` hangs, and is killed and started again. None is never asked.
    note: what the line that reports the part says about it, such as a version.
    after: names of the parts that must be ready first. Parts are stopped in the opposite order.
    runs_once: a job, ready when it has exited with status 0.
    ready_seconds: how long it may take to become ready.  grace_seconds: how long to end after `stop_signal`.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str | None] = field(default_factory=dict)
    cwd: Path | None = None
    prepare: Callable[[], None] | None = None
    ready: Callable[[], bool] | None = None
    alive: Callable[[], bool] | None = None
    note: str = ""
    after: tuple[str, ...] = ()
    runs_once: bool = False
    ready_seconds: float = 60.0
    alive_seconds: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 15.0
    nice: int = 0
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a part that keeps dying stays down: `base * 2 ** (deaths - 1)`, bounded, and up to `jitter_fraction`
    more, so that parts which died together do not return together."""

    base_seconds: float = 0.5
    most_seconds: float = 30.0
    jitter_fraction: float = 0.25
    stable_seconds: float = 60.0

    def delay_seconds(self, num_deaths: int, chance: float) -> float:
        """num_deaths: in a row, >= 1.  chance: [0, 1)."""
        plain = min(self.most_seconds, self.base_seconds * 2.0 ** min(num_deaths - 1, 32))
        return plain * (1.0 + self.jitter_fraction * chance)

    def is_stable(self, up_seconds: float) -> bool:
        """Whether a part that ran for so long is forgiven its earlier deaths."""
        return up_seconds >= self.stable_seconds


def check_order(parts: Sequence[Part]) -> None:
    """Raises ConfigurationError on a doubled name, an unknown one in `after`, or a circle."""
    stages(parts)


def stages(parts: Sequence[Part]) -> list[list[str]]:
    """Names in groups: everything that a part comes after is in an earlier group. Raises ConfigurationError."""
    names = [part.name for part in parts]
    unknown = {name for part in parts for name in part.after} - set(names)
    if unknown or len(set(names)) != len(names):
        raise ConfigurationError(
            f"parts: expected different names, and only known ones in `after`; got {names}, {unknown}"
        )
    sorter = TopologicalSorter({part.name: part.after for part in parts})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ConfigurationError(f"parts: they wait for each other in a circle: {error.args[1]}") from error
    groups: list[list[str]] = []
    while sorter.is_active():
        group = sorter.get_ready()
        sorter.done(*group)
        groups.append(sorted(group, key=names.index))
    return groups


def python_argv(module: str, *arguments: str, executable: str) -> tuple[str, ...]:
    """`-P` keeps the working directory off the import path."""
    return (executable, "-P", "-m", module, *arguments)


def safe_python_path(value: str, own_root: Path, modules: Sequence[str]) -> str:
    """PYTHONPATH without the entries that hold a module named like one of ours, and without relative ones."""
    return os.pathsep.join(entry for entry in value.split(os.pathsep) if _is_safe(entry, own_root, modules))


def _is_safe(entry: str, own_root: Path, modules: Sequence[str]) -> bool:
    path = Path(entry)
    if not path.is_absolute():
        return False
    # a directory without __init__.py shadows nothing
    return path == own_root or not any(
        (path / name / "__init__.py").exists() or (path / f"{name}.py").exists() for name in modules
    )
