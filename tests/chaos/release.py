"""Two releases beside each other: the tree of each, and parts that can be run from either."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.lifeline import INSTANCE_VARIABLE
from core.settings import Settings
from tests.chaos.stack import Command, await_line
from workers.instance import Instance

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("release_part.py")


@dataclass(frozen=True, slots=True)
class Release:
    """name: for people. tree: where its packages are."""

    name: str
    tree: Path

    @property
    def least_row_attempt(self) -> int:
        """Outcomes tell which attempt wrote them since a migration of that name; 0 says that they do not."""
        return int((self.tree / "alembic" / "versions" / "0005_shares_pauses_retries.py").exists())


NEW = Release("new", ROOT)


@contextmanager
def checked_out(revision: str, within: Path) -> Iterator[Release]:
    """A release of the past in a git worktree of its own. Raises CalledProcessError where there is none."""
    tree = within / "old"
    _git("worktree", "add", "--detach", "--force", str(tree), revision)
    try:
        yield Release(revision, tree)
    finally:
        _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, stdout=subprocess.DEVNULL)


@dataclass
class Place:
    """Where one part runs, of one release after the other."""

    name: str
    settings: Settings
    command: Command | None = None

    @property
    def title(self) -> str:
        return f"{self.name} of {self.settings.node_name}"

    def start(self, release: Release) -> None:
        """Returns at once; `await_ready` follows."""
        settings = json.dumps(given(self.settings))
        output = self.settings.data_path.parent / f"{self.settings.node_name}-{self.name}.txt"
        output.unlink(missing_ok=True)
        environment = {
            "PYTHONPATH": str(release.tree),
            INSTANCE_VARIABLE: Instance.of(self.settings).identity,
        }
        program = (sys.executable, "-P", str(SCRIPT))
        self.command = Command((self.name, settings), self.settings, output, program, environment)

    def await_ready(self, release: Release) -> None:
        """And checks that it is that release, and no other that is installed."""
        assert self.command is not None
        await_line(self.command, f"{self.name} of {release.tree} is ready")
        for child in psutil.Process(self.command.process.pid).children():
            assert child.environ()["PYTHONPATH"] == str(release.tree)

    @property
    def is_engine(self) -> bool:
        return self.name.startswith("engine-")

    def ask_to_end(self) -> None:
        """As a service manager would; `await_end` follows."""
        assert self.command is not None
        self.command.process.terminate()

    def await_end(self) -> None:
        """Raises AssertionError where it does not end by itself."""
        assert self.command is not None
        status = self.command.await_end()
        output = self.command.output()
        self.command = None
        assert status == 0, f"{self.title} ended with {status}:\n{output}"
        assert "killing" not in output, f"{self.title} did not end within its grace period:\n{output}"

    @property
    def log_path(self) -> Path:
        """Of everything it ever said, in whichever release."""
        return Instance.of(self.settings).log_path(self.name)

    def clear(self) -> None:
        if self.command is not None:
            self.command.clear()


def given(settings: Settings) -> dict[str, object]:
    """Those that are not as they are by default: another release may have other defaults."""
    usual, names = Settings(), Settings.__struct_fields__
    return {name: getattr(settings, name) for name in names if getattr(settings, name) != getattr(usual, name)}
