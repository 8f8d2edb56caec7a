"""Which devices this machine has, and which of them a node uses: GPUs through NVML, else the CPU."""

import logging
from dataclasses import dataclass

import pynvml

from core.errors import ConfigurationError

logger = logging.getLogger(__name__)

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Device:
    """name: `cpu` or `gpu<index>`.  uuid: what CUDA_VISIBLE_DEVICES pins to; None for the CPU."""

    name: str
    description: str
    uuid: str | None = None
    memory_bytes: int = 0

    @property
    def is_gpu(self) -> bool:
        return self.uuid is not None


def find_gpus() -> list[Device]:
    """Empty where there is no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.debug("no NVIDIA driver: %s", error)
        return []
    try:
        return [_describe(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _describe(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Device(
        name=f"gpu{index}",
        description=str(pynvml.nvmlDeviceGetName(handle)),
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
    )


def choose_devices(setting: str, gpus: list[Device]) -> list[Device]:
    """`setting`: `auto`, `cpu`, or indices or UUIDs with commas. Raises ConfigurationError on an unknown one."""
    cpu = Device(CPU, "CPU")
    if setting == CPU:
        return [cpu]
    if setting == "auto":
        return gpus or [cpu]
    return [_find(part.strip(), gpus) for part in setting.split(",") if part.strip()]


def _find(wanted: str, gpus: list[Device]) -> Device:
    for gpu in gpus:
        if wanted in (gpu.uuid, gpu.name, gpu.name.removeprefix("gpu")):
            return gpu
    known = ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in gpus) or "none"
    raise ConfigurationError(f"MILLRACE_DEVICES: expected `auto`, `cpu` or known GPUs, got {wanted!r}; here: {known}")
