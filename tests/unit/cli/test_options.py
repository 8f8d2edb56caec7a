import os
from pathlib import Path

import pytest

from cli.options import InvalidOption, read_settings, resolve_paths
from core.settings import Settings


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MILLRACE_")]:
        monkeypatch.delenv(name)


def test_an_option_overrides_the_environment_and_an_absent_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setenv("MILLRACE_PORT", "9000")
    monkeypatch.setenv("MILLRACE_FLOWER_PORT", "9001")

    # When
    settings = read_settings({"port": 9100, "flower_port": None})

    # Then
    assert (settings.port, settings.flower_port) == (9100, 9001)


def test_a_wrong_option_is_named_by_its_variable() -> None:
    with pytest.raises(InvalidOption, match=r"MILLRACE_PORT: .*70000"):
        read_settings({"port": 70000})


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)

    # When
    settings = resolve_paths(Settings(data_dir="data", models="./mine,org/here,org/hub,null=null:"))

    # Then
    assert settings.data_dir == str(tmp_path / "data")
    assert settings.model_sources == {
        "mine": str(tmp_path / "mine"),
        "org/here": str(tmp_path / "org" / "here"),
        "org/hub": "org/hub",
        "null": "null:",
    }


def test_what_was_absolute_stays_as_it_was_written(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))
    assert resolve_paths(settings) == settings
