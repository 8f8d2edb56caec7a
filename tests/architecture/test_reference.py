import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from api import errors as api_errors
from api.app import create_api
from cli.main import app as command_line
from core import errors
from core.settings import PREFIX, Settings
from docs.codes import CODES
from tasks.factory import create_app
from tests.architecture.source import PACKAGES, REFERENCE, ROOT, parsed, project_files, python_files, relative

CODE_PATTERN = re.compile(r"[a-z]+(_[a-z]+)*")
# Calls whose first text is a code.
CODE_CALLS = frozenset({"LineError", "_note", "Failed", "error_response", "_failure"})


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def test_the_reference_is_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "docs.generate", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_setting_is_in_the_reference() -> None:
    text = page("settings.md")
    assert [field for field in Settings.__struct_fields__ if f"`{PREFIX}{field.upper()}`" not in text] == []


def test_headers_of_a_route_are_shown_as_headers() -> None:
    text = page("routes.md")
    assert "header `Idempotency-Key`" in text
    assert "?Idempotency-Key" not in text


def test_every_error_is_in_the_reference() -> None:
    text = page("errors.md")
    assert [kind.__name__ for kind in error_classes() if f"`{kind.__name__}`" not in text] == []


def test_every_error_has_a_status() -> None:
    statuses = {kind.__name__: api_errors.status_of(kind("…")) for kind in error_classes()}
    assert "EngineLost" in statuses
    assert [name for name, status in statuses.items() if not 400 <= status < 600] == []


def error_classes() -> list[type[errors.MillraceError]]:
    """All but the root, which is never raised itself."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in classes if issubclass(kind, errors.MillraceError) and kind is not errors.MillraceError]


def test_every_task_is_in_the_reference() -> None:
    app = create_app(Settings())
    app.loader.import_default_modules()
    text = page("tasks-and-queues.md")
    names = [name for name in app.tasks if not name.startswith("celery.")]
    assert names
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_route_is_in_the_reference() -> None:
    paths = create_api(Settings(database_url="postgresql://")).openapi()["paths"]
    text = page("routes.md")
    routes = [f"`{method.upper()} {path}`" for path, operations in paths.items() for method in operations]
    assert routes
    assert [route for route in routes if route not in text] == []


def test_every_command_is_in_the_reference() -> None:
    group = typer.main.get_command(command_line)
    assert isinstance(group, TyperGroup)
    text = page("commands.md")
    assert [name for name in command_names("millrace", group) if f"## `{name}`" not in text] == []


def command_names(prefix: str, group: TyperGroup) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from command_names(f"{prefix} {name}", command)
        else:
            yield f"{prefix} {name}"


def test_every_code_in_the_code_is_explained_and_every_explained_one_exists() -> None:
    # Given
    used = {code for path in python_files(*PACKAGES) for code in literal_codes(parsed(path))}
    explained = [code for code, _, _ in CODES]

    # Then
    assert {"duplicate_custom_id", "file_not_found", "client_closed_request", "engine_lost"} <= used
    assert sorted(used - set(explained)) == []
    assert explained == sorted(set(explained))
    assert [code for code in explained if not any(f'"{code}"' in text for text in sources())] == []


def literal_codes(tree: ast.Module) -> Iterator[str]:
    """`code = "…"` in a class, `code="…"` in a call, and the first argument of calls that take a code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from class_codes(node)
        elif isinstance(node, ast.Call):
            values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            values += [value for value in node.args if name in CODE_CALLS][:2]
            for value in values:
                yield from texts(value)


def class_codes(node: ast.ClassDef) -> Iterator[str]:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "code":
            yield from texts(statement.value)


def texts(value: ast.expr) -> Iterator[str]:
    parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and CODE_PATTERN.fullmatch(part.value):
            yield part.value


def sources() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in python_files(*PACKAGES)]


@pytest.mark.parametrize("path", [path for path in project_files() if path.suffix == ".md"], ids=relative)
def test_every_link_between_pages_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith(("http:", "https:", "mailto:"))]
    assert [target for target in local if not (path.parent / target).exists()] == []
