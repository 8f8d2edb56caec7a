"""The tree as the architecture tests see it: which files belong to the project, and the Python of them parsed."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "cli", "core", "db", "engine", "tasks", "workers")
OTHER_FOLDERS = ("alembic", "benchmarks", "docs", "examples", "tests")
TOP_SUFFIXES = (".md", ".toml", ".yml", ".ini")
TOP_NAMES = ("Makefile", "Dockerfile", ".dockerignore", ".gitignore")
REFERENCE = ROOT / "docs" / "reference"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def project_files() -> list[Path]:
    """Ours: neither environments, caches nor what somebody left lying in the top folder."""
    folders = [ROOT / name for name in (*PACKAGES, *OTHER_FOLDERS, ".ci")]
    below = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    top = [path for path in ROOT.iterdir() if path.suffix in TOP_SUFFIXES or path.name in TOP_NAMES]
    return sorted(path for path in (*below, *top) if path.is_file())


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
