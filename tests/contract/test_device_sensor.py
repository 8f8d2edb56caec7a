"""Sensors of a device: one suite over a fake and over NVML, where there is a device, and NVML where there is none."""

import pynvml
import pytest

from core.protocol import DeviceReading
from engine.telemetry.nvml import NvmlSensor, visible_device
from engine.telemetry.sensor import Sensor, SensorUnavailable


class FakeSensor:
    def read(self) -> DeviceReading:
        return DeviceReading(40 * 2**30, 80 * 2**30, 0.97, 650.0, 71.0)


def has_device() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return int(pynvml.nvmlDeviceGetCount()) > 0


needs_device = pytest.mark.skipif(not has_device(), reason="no NVIDIA device here")


@pytest.fixture(params=["fake", pytest.param("nvml", marks=needs_device)])
def sensor(request: pytest.FixtureRequest) -> Sensor:
    return FakeSensor() if request.param == "fake" else NvmlSensor(visible_device())


def test_a_reading_is_within_what_devices_can_be(sensor: Sensor) -> None:
    for reading in (sensor.read(), sensor.read()):
        assert 0 <= (reading.memory_used_bytes or 0) <= (reading.memory_total_bytes or 2**60)
        assert 0 <= (reading.utilization_fraction or 0) <= 1
        assert 0 <= (reading.power_watts or 0) < 10_000
        assert 0 < (reading.temperature_celsius or 20) < 150


@pytest.mark.skipif(has_device(), reason="there is an NVIDIA device here")
def test_nvml_without_a_driver_says_so_every_time() -> None:
    sensor = NvmlSensor("0")
    for _ in range(2):
        with pytest.raises(SensorUnavailable, match="NVML says nothing of device 0"):
            sensor.read()


@needs_device
def test_an_unknown_device_is_unavailable() -> None:
    with pytest.raises(SensorUnavailable):
        NvmlSensor("GPU-00000000-0000-0000-0000-000000000000").read()


@pytest.mark.parametrize(
    ("value", "device"), [("GPU-abc", "GPU-abc"), ("2,3", "2"), (" 1 , 0", "1"), ("", "0"), (None, "0")]
)
def test_the_device_is_the_first_that_cuda_shows(
    value: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_device() == device
