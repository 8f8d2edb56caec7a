"""How much memory the K/V of a model may take."""

from pathlib import Path

import pytest
import torch

from engine.models import memory

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """8 GiB available, and a control group to be written."""
    (tmp_path / "meminfo").write_text("MemTotal:  16777216 kB\nMemAvailable:   8388608 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def test_a_quarter_of_what_is_available_is_shared_by_the_models(machine: Path) -> None:
    assert memory.kv_budget_bytes(torch.device("cpu"), 1) == 2 * GIB
    assert memory.kv_budget_bytes(torch.device("cpu"), 2) == GIB


@pytest.mark.parametrize(("limit", "budget"), [("max", 2 * GIB), (str(5 * GIB), GIB), (str(GIB // 2), 0)])
def test_a_container_has_what_its_control_group_leaves(machine: Path, limit: str, budget: int) -> None:
    (machine / "memory.max").write_text(f"{limit}\n")
    (machine / "memory.current").write_text(f"{GIB}\n")
    assert memory.kv_budget_bytes(torch.device("cpu"), 1) == budget


def test_other_systems_count_their_pages(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert memory.kv_budget_bytes(torch.device("cpu"), 1) > 0
