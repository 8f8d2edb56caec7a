import re
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from cli.main import app as command_line
from core.settings import PREFIX, Settings
from tests.architecture.source import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
OURS = [name for name, service in SERVICES.items() if "build" in service]
ONE_SHOT = {"migrate"}
WITHOUT_HEALTH_CHECK = {"migrate", "beat"}

every_service = pytest.mark.parametrize("name", SERVICES)


def test_all_parts_of_the_system_are_there() -> None:
    assert set(SERVICES) == {"postgresql", "valkey", "migrate", "api", "beat", "flower", "node-cpu", "node-gpu"}


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_that_we_have(name: str) -> None:
    # Given
    program, command, *options = SERVICES[name]["command"]
    group = typer.main.get_command(command_line)
    assert isinstance(group, TyperGroup)

    # Then
    assert program == "millrace"
    assert command in group.commands
    known = {option for parameter in group.commands[command].params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known


def test_every_variable_of_ours_is_a_setting() -> None:
    settings = {PREFIX + field.upper() for field in Settings.__struct_fields__}
    said = {variable for name in OURS for variable in SERVICES[name].get("environment", {})}
    given = {variable for variable in said if variable.startswith(PREFIX)}
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8") + DOCKERFILE
    assert given <= settings
    assert set(re.findall(rf"{PREFIX}[A-Z_]+", text)) <= settings


@pytest.mark.parametrize("name", OURS)
def test_every_setting_in_the_env_file_reaches_our_services(name: str) -> None:
    assert SERVICES[name]["env_file"] == [{"path": ".env", "required": False}]


@pytest.mark.parametrize("node", ["node-cpu", "node-gpu"])
def test_the_api_can_read_the_models_that_a_node_serves(node: str) -> None:
    # Given
    api, models = SERVICES["api"], "MILLRACE_MODELS"

    # Then
    assert set(SERVICES[node]["volumes"]) <= set(api["volumes"])
    assert api["environment"][models] == SERVICES[node]["environment"][models]
    hub = re.search(r"HF_HOME=(\S+)", DOCKERFILE)
    assert hub is not None
    assert api["environment"]["HF_HOME"] == hub[1]


@every_service
def test_nothing_runs_as_root(name: str) -> None:
    assert SERVICES[name]["user"] not in ("root", "0", 0)
    assert SERVICES[name]["cap_drop"] == ["ALL"]


@every_service
def test_every_image_has_a_version(name: str) -> None:
    repository, _, tag = SERVICES[name]["image"].partition(":")
    assert repository
    assert tag not in ("", "latest")


@every_service
def test_every_service_is_restarted_unless_it_ends_by_design(name: str) -> None:
    assert SERVICES[name]["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")


@every_service
def test_every_lasting_service_has_a_health_check(name: str) -> None:
    assert ("healthcheck" in SERVICES[name]) != (name in WITHOUT_HEALTH_CHECK)


@every_service
def test_a_service_waits_only_for_services_that_are_there_and_can_tell(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        ends = how["condition"] == "service_completed_successfully"
        assert ends == (other in ONE_SHOT)
        assert ends or "healthcheck" in SERVICES[other]


@every_service
def test_every_named_volume_is_declared(name: str) -> None:
    sources = [volume.rsplit(":/", 1)[0] for volume in SERVICES[name]["volumes"] if not volume.startswith("$")]
    assert set(sources) <= set(COMPOSE["volumes"])


@every_service
def test_nothing_listens_where_other_machines_reach_it(name: str) -> None:
    service = SERVICES[name]
    assert "ports" not in service
    if service.get("network_mode") == "host":
        assert service["command"][service["command"].index("--host") + 1] == "127.0.0.1"


def test_the_servers_keep_no_port_open() -> None:
    assert "-clisten_addresses=" in SERVICES["postgresql"]["command"]
    valkey = SERVICES["valkey"]["command"]
    assert valkey[valkey.index("--port") + 1] == "0"


def test_the_database_keeps_its_promises() -> None:
    text = " ".join(SERVICES["postgresql"]["command"])
    assert "fsync" not in text
    assert "synchronous_commit" not in text


def test_the_broker_never_drops_a_message_to_save_memory() -> None:
    valkey = SERVICES["valkey"]["command"]
    assert valkey[valkey.index("--maxmemory-policy") + 1] == "noeviction"


def test_every_image_that_is_built_ends_without_root_and_has_a_version() -> None:
    # Given: the Dockerfile by its stages
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    built = {SERVICES[name]["build"]["target"] for name in OURS}
    final = {match[1]: stage for stage in stages if (match := re.match(r"\S+ AS (\w+)", stage)) and match[1] in built}

    # Then
    assert set(final) == built
    assert all(re.findall(r"^USER (\w+)", stage, flags=re.MULTILINE)[-1] == "millrace" for stage in final.values())
    images = [stage.split()[0] for stage in stages]
    assert all(image == "control" or re.search(r":\d", image) for image in images)


def test_the_image_holds_everything_that_is_imported() -> None:
    # Given
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    packages = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert packages is not None

    # Then
    wanted = {*re.findall(r'"(\w+)"', packages[1]), "alembic", "pyproject.toml", "README.md", "LICENSE"}
    assert wanted <= kept
