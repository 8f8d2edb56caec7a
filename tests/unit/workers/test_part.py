import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigurationError
from workers.part import Backoff, Part, check_order, python_argv, safe_python_path, stages


def part(name: str, *after: str) -> Part:
    return Part(name=name, argv=("true",), after=after)


def test_a_part_starts_after_everything_it_names() -> None:
    # Given
    parts = [part("api", "migrate"), part("migrate", "database"), part("broker"), part("database")]

    # Then
    assert stages(parts) == [["broker", "database"], ["migrate"], ["api"]]


def test_an_unknown_name_a_doubled_name_and_a_circle_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        check_order([part("a", "nowhere")])
    with pytest.raises(ConfigurationError, match="different names"):
        check_order([part("a"), part("a")])
    with pytest.raises(ConfigurationError, match="circle"):
        check_order([part("a", "b"), part("b", "a")])


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_delay_never_exceeds_its_bounds(num_deaths: int, chance: float) -> None:
    backoff = Backoff(base_seconds=0.5, most_seconds=30, jitter_fraction=0.25)
    assert 0.5 <= backoff.delay_seconds(num_deaths, chance) <= 37.5


def test_the_delay_doubles_with_each_death_in_a_row() -> None:
    backoff = Backoff(base_seconds=0.5, most_seconds=30)
    assert [backoff.delay_seconds(n, 0.0) for n in (1, 2, 3, 7)] == [0.5, 1.0, 2.0, 30.0]


def test_a_python_child_ignores_its_working_directory() -> None:
    assert python_argv("api.server", "--quiet", executable="/venv/python") == (
        "/venv/python",
        *("-P", "-m", "api.server", "--quiet"),
    )


def test_python_path_keeps_only_absolute_entries_that_do_not_shadow_ours(tmp_path: Path) -> None:
    # Given
    own, harmless, with_module, with_package = (tmp_path / name for name in ("own", "harmless", "module", "package"))
    for folder in (own, harmless, with_module, with_package):
        folder.mkdir()
    (own / "tasks").mkdir()
    (with_module / "tasks.py").touch()
    (with_package / "db").mkdir()
    (with_package / "db" / "__init__.py").touch()
    (harmless / "db").mkdir()

    # When
    value = os.pathsep.join(["", ".", str(harmless), str(with_module), str(with_package), str(own)])

    # Then
    assert safe_python_path(value, own, ("tasks", "db")) == f"{harmless}{os.pathsep}{own}"
