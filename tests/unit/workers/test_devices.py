"""Which devices a node uses: every GPU, the CPU where there is none, or those that are named."""

import pytest

from core.errors import ConfigurationError
from workers.devices import Device, choose_devices, find_gpus

GPUS = [Device("gpu0", "A", "GPU-aaaa", 1), Device("gpu1", "B", "GPU-bbbb", 1)]


def names(setting: str, gpus: list[Device]) -> list[str]:
    return [device.name for device in choose_devices(setting, gpus)]


@pytest.mark.parametrize(
    ("setting", "gpus", "expected"),
    [
        ("auto", GPUS, ["gpu0", "gpu1"]),
        ("auto", [], ["cpu"]),
        ("cpu", GPUS, ["cpu"]),
        ("1", GPUS, ["gpu1"]),
        ("gpu1, 0", GPUS, ["gpu1", "gpu0"]),
        ("GPU-bbbb", GPUS, ["gpu1"]),
    ],
)
def test_devices_are_chosen_by_the_setting(setting: str, gpus: list[Device], expected: list[str]) -> None:
    assert names(setting, gpus) == expected


def test_an_unknown_device_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(ConfigurationError, match=r"got '7'; here: gpu0 \(GPU-aaaa\), gpu1 \(GPU-bbbb\)"):
        choose_devices("7", GPUS)


def test_a_machine_without_a_driver_has_no_gpus_and_says_nothing() -> None:
    """On a machine with GPUs each of them is pinned by its UUID."""
    assert all(gpu.uuid for gpu in find_gpus())
