"""The tree as the architecture tests see it: which files belong to the project, and the Python of them parsed."""

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "cli", "core", "db", "engine", "tasks", "workers")
OTHER_FOLDERS = ("alembic", "benchmarks", "docs", "examples", "tests")
REFERENCE = ROOT / "docs" / "reference"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def project_files() -> list[Path]:
    """What git has or would take: neither environments nor caches."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def python_files(*folders: str) -> list[Path]:
    return [path for path in project_files() if path.suffix == ".py" and relative(path).split("/")[0] in folders]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(parsed(path)) if isinstance(node, Function)]
