import json
import subprocess
import sys
from pathlib import Path

import pytest

MODEL_LIBRARIES = ("torch", "transformers", "bitsandbytes", "accelerate", "sentence_transformers")
SERVER_LIBRARIES = ("sqlalchemy", "psycopg", "celery", "kombu", "redis", "fastapi", "alembic")
OUR_PACKAGES = ("api", "cli", "db", "tasks", "workers")

LOAD_TASKS = "app.loader.import_default_modules()"


def loaded_modules(statements: str, directory: Path) -> set[str]:
    """Top-level modules of a fresh interpreter after these statements."""
    program = (
        f"import json, sys\n{statements}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    )
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param("import api.server", id="API"),
        pytest.param(f"from tasks.app import app; {LOAD_TASKS}", id="beat and Flower"),
        pytest.param(f"from workers.boot import app; {LOAD_TASKS}", id="Celery workers"),
        pytest.param("import cli.local.up, cli.local.production, cli.batch, cli.demo, cli.doctor", id="command line"),
        pytest.param("import core.prompts, core.settings", id="prompts and token counts"),
    ],
)
def test_only_the_engine_needs_a_model_library(statements: str, tmp_path: Path) -> None:
    assert loaded_modules(statements, tmp_path) & set(MODEL_LIBRARIES) == set()


def test_help_comes_without_loading_what_commands_need(tmp_path: Path) -> None:
    heavy = {"torch", "celery", "sqlalchemy", "fastapi", "openai"}
    assert loaded_modules("import cli.main", tmp_path) & heavy == set()


def test_the_engine_runs_where_no_server_library_is_installed(tmp_path: Path) -> None:
    # Given: its own process, which answers before torch is loaded
    loaded = loaded_modules("import engine.server, engine.jobs", tmp_path)

    # Then
    assert loaded & {*SERVER_LIBRARIES, *OUR_PACKAGES} == set()
    assert loaded & set(MODEL_LIBRARIES) == set()


def test_the_model_runtime_needs_no_server_library_either(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    loaded = loaded_modules("import engine.models.loading", tmp_path)
    assert loaded & {*SERVER_LIBRARIES, *OUR_PACKAGES} == set()
