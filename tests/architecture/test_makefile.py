import re
import stat
import subprocess

from tests.architecture.source import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HABITS = ("help", "setup", "demo", "test", "check", "bench", "up", "clean")


def test_help_lists_every_target() -> None:
    # When
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    # Then
    targets = re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE)
    assert set(HABITS) <= set(targets)
    assert [target for target in targets if f"make {target} " not in shown] == []


def test_nothing_is_installed_again_while_the_project_file_stays_the_same() -> None:
    # Given: the stamp is the only thing between setup and pip, and it depends on nothing else
    rule = re.search(r"^\$\(VENV\)/\.installed-dev: (.*)$", MAKEFILE, flags=re.MULTILINE)

    # Then
    assert rule is not None
    assert rule[1].split("|")[0].split() == ["pyproject.toml"]


def test_the_check_of_a_change_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    text = script.read_text(encoding="utf-8")
    assert text.index("make check") < text.index("make test")
