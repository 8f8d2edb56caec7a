"""What the processes of a running `millrace up` use: memory and CPU time, summed per part.

A part is a child of `up` with everything that it started. It is named by its working directory, which the supervisor
names after the part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

SUPERVISOR = "up"
OTHERS = "others"
_MB = 1e6
_IDLE = 0.001


def parts_of(pid: int, name: str = SUPERVISOR) -> dict[str, list[psutil.Process]]:
    """pid: of the process that started the parts, which goes by `name`. Part -> its processes."""
    starter = psutil.Process(pid)
    parts = {name: [starter]}
    for child in sorted(starter.children(), key=lambda process: process.create_time()):
        parts[Path(child.cwd()).name] = [child, *child.children(recursive=True)]
    return parts


def memory_megabytes(pid: int) -> dict[str, dict[str, float]]:
    """RSS counts shared pages in every process, PSS shares them out, USS leaves them out. pid: of `millrace up`."""
    table = {name: _memory(processes) for name, processes in parts_of(pid).items()}
    columns = list(table[SUPERVISOR])
    return {**table, "all": {column: sum(cells[column] for cells in table.values()) for column in columns}}


def _memory(processes: list[psutil.Process]) -> dict[str, float]:
    infos = [process.memory_full_info() for process in processes]
    kinds = [kind for kind in ("rss", "pss", "uss") if all(hasattr(info, kind) for info in infos)]
    return {kind: sum(getattr(info, kind) for info in infos) / _MB for kind in kinds}


def cpu_seconds(pid: int, name: str = SUPERVISOR) -> dict[str, float]:
    """CPU time of each part since its start. A process that ended meanwhile is counted by the one that reaped it."""
    parts = parts_of(pid, name)
    starter = parts.pop(name)[0]  # it reaps whole parts, whose time is not its own
    seconds = {part: sum(map(_cpu_seconds, processes)) for part, processes in parts.items()}
    return {**seconds, name: sum(starter.cpu_times()[:2])}


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process and of everything below it, those that ended included."""
    starter = psutil.Process(pid)
    return sum(map(_cpu_seconds, [starter, *starter.children(recursive=True)]))


def machine_cpu_seconds() -> float:
    """CPU time that all processes of the machine took since it was started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _cpu_seconds(process: psutil.Process) -> float:
    """user, system, and those of reaped children"""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU seconds at one moment: of each part, and of the whole machine."""

    at_seconds: float
    parts: Mapping[str, float]
    machine: float


def cores_used(before: Reading, after: Reading) -> dict[str, dict[str, float]]:
    """Cores that each part kept busy on average between two readings, the busiest first; then what everybody else on
    the machine did: a figure is worth little where that is much. A part that started or ended in between, or did
    nothing, is left out."""
    seconds = after.at_seconds - before.at_seconds
    used = {name: (after.parts[name] - before.parts[name]) / seconds for name in after.parts if name in before.parts}
    busy = {name: used[name] for name in sorted(used, key=lambda name: -used[name]) if used[name] > _IDLE}
    others = max(0.0, (after.machine - before.machine) / seconds - sum(used.values()))
    return {name: {"cores": cores} for name, cores in {**busy, OTHERS: others}.items()}
