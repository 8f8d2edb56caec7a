"""How many bytes the K/V of a model may take on a device. Taken only as sequences need them."""

import math
import os
from pathlib import Path

import torch

_FRACTION_CUDA = 0.8  # of what is free once the weights are there; the rest is for activations
_FRACTION_CPU = 0.25  # a laptop has other work to do
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def kv_budget_bytes(device: torch.device, num_models: int) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _FRACTION_CUDA) // num_models
    available = min(_machine_bytes(), _container_bytes())
    return int(available * _FRACTION_CPU) // num_models


def _container_bytes() -> float:
    """What the control group leaves; infinite where it sets no bound."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except FileNotFoundError:
        return math.inf
    return math.inf if limit == "max" else max(0, int(limit) - int(used))


def _machine_bytes() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
