import json
import socket
from pathlib import Path

import pytest

from cli.checks import Level, check_compiler, check_disk, check_models, check_port, check_postgresql, check_valkey
from cli.doctor import changed, examine, has_failed, to_json, to_text
from core.settings import Settings


def test_a_machine_that_can_run_the_null_model_has_nothing_to_mend(tmp_path: Path) -> None:
    # Given
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [one.getsockname()[1], two.getsockname()[1]]
    settings = Settings(data_dir=str(tmp_path / "data"), models="null=null:", port=ports[0], flower_port=ports[1])

    # When
    findings = examine(settings)
    report = json.loads(to_json(findings, settings))

    # Then
    assert not has_failed(findings), to_text(findings, settings)
    assert report["ok"]
    assert {"python", "device", "disk", "postgresql", "valkey", "model null"} <= {
        one["name"] for one in report["checks"]
    }
    assert "Ready for `millrace up`." in to_text(findings, settings)
    assert not (tmp_path / "data").exists()


def test_servers_that_cannot_be_reached_are_failures_that_name_the_setting() -> None:
    # Given
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = Settings(
        database_url=f"postgresql://user@127.0.0.1:{port}/name", redis_url=f"redis://127.0.0.1:{port}/0"
    )

    # When
    findings = [check_postgresql(settings), check_valkey(settings)]

    # Then
    assert [finding.level for finding in findings] == [Level.FAIL, Level.FAIL]
    assert "MILLRACE_DATABASE_URL" in findings[0].mend
    assert "MILLRACE_REDIS_URL" in findings[1].mend


def test_a_missing_compiler_is_told_where_it_would_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setenv("CC", "no-such-compiler -O2")

    # When
    finding = check_compiler(Settings())

    # Then
    assert (finding.level, finding.text) == (Level.WARN, "none of no-such-compiler")
    assert check_compiler(Settings(engine_kernels="torch")).level is Level.OK


def test_a_taken_port_fails_and_names_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = check_port(Settings(data_dir="/nowhere"), "flower port", port)
    assert (finding.level, finding.text) == (Level.FAIL, f"{port} is taken")
    assert "MILLRACE_FLOWER_PORT" in finding.mend


def test_models_are_looked_for_where_they_would_be_loaded_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--org--here" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (tmp_path / "empty").mkdir()
    models = f"millrace/tiny,org/here,org/away,{tmp_path}/empty"

    # When
    findings = check_models(Settings(data_dir=str(tmp_path), models=models))

    # Then
    assert [finding.level for finding in findings] == [Level.OK, Level.OK, Level.WARN, Level.FAIL]
    assert "trained at the first start" in findings[0].text


def test_a_data_directory_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_disk(Settings(data_dir=str(tmp_path / "file" / "data"))).level is Level.FAIL


def test_passwords_are_not_shown() -> None:
    settings = Settings(database_url="postgresql://user:secret@host/name", redis_url="redis://:secret@host:6379/0")
    shown = changed(settings)
    assert "secret" not in str(shown)
    assert shown["MILLRACE_DATABASE_URL"] == "postgresql://user:***@host/name"
