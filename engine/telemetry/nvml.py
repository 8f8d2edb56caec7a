"""Readings of an NVIDIA device through NVML, the library of its driver. Nothing else here imports pynvml."""

import os
from collections.abc import Callable
from typing import TypeVar

import pynvml

from core.protocol import DeviceReading
from engine.telemetry.sensor import SensorUnavailable

Value = TypeVar("Value")


class NvmlSensor:
    """device: its UUID as CUDA_VISIBLE_DEVICES names it, or its index among all devices of the machine."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._handle: object | None = None

    def read(self) -> DeviceReading:
        """Raises SensorUnavailable where the driver or the device is gone; a sensor it does not have is None."""
        try:
            handle = self._open()
            memory = _maybe(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
            utilization = _maybe(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
            milliwatts = _maybe(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
            celsius = _maybe(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
        except pynvml.NVMLError as error:
            self._handle = None
            raise SensorUnavailable(f"NVML says nothing of device {self._device}: {error}") from error
        return DeviceReading(
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            utilization_fraction=None if utilization is None else int(utilization.gpu) / 100,
            power_watts=None if milliwatts is None else int(milliwatts) / 1000,
            temperature_celsius=None if celsius is None else float(celsius),
        )

    def _open(self) -> object:
        if self._handle is None:
            pynvml.nvmlInit()
            self._handle = (
                pynvml.nvmlDeviceGetHandleByIndex(int(self._device))
                if self._device.isdigit()
                else pynvml.nvmlDeviceGetHandleByUUID(self._device)
            )
        return self._handle


def _maybe(read: Callable[[], Value]) -> Value | None:
    """None where this device has no such sensor, or does not show it: MIG slices and virtual devices hide some."""
    try:
        return read()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission):
        return None


def visible_device() -> str:
    """The first device that CUDA shows this process. `CUDA_VISIBLE_DEVICES` is CUDA's own, and NVML ignores it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
