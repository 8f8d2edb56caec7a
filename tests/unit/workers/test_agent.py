"""The parts of a node: an engine pinned to its device, a worker per class on the right queues, upkeep beside them."""

import msgspec
import pytest

from core.settings import Settings
from workers import agent
from workers.devices import Device
from workers.part import Part

SETTINGS = Settings(
    data_dir="/data", database_url="postgresql://db/x", redis_url="redis://r/0", models="a=/models/a,b=/models/b",
    node_name="node", devices="cpu",
)  # fmt: skip
GPU = Device("gpu0", "NVIDIA", "GPU-aaaa", 1)


def by_name(parts: list[Part]) -> dict[str, Part]:
    return {part.name: part for part in parts}


def option(part: Part, name: str) -> str:
    argv = list(part.argv)
    return argv[argv.index(name) + 1]


@pytest.fixture
def parts() -> dict[str, Part]:
    return by_name(agent.node_parts(SETTINGS, after=("migrate",), engine_after=("built-in-model",)))


def test_a_node_has_an_engine_and_the_workers_of_every_class(parts: dict[str, Part]) -> None:
    assert set(parts) == {"engine-cpu", "online-cpu", "batch-cpu", "heavy-cpu", "control", "upkeep"}
    assert parts["engine-cpu"].after == ("built-in-model",)
    assert parts["batch-cpu"].after == ("migrate",)


def test_workers_listen_to_the_queues_of_their_class_and_models(parts: dict[str, Part]) -> None:
    assert option(parts["online-cpu"], "-Q") == "online.a,online.b"
    assert option(parts["batch-cpu"], "-Q") == "batch.a,batch.b"
    assert option(parts["heavy-cpu"], "-Q") == "heavy.node"
    assert option(parts["control"], "-Q") == "control"
    assert option(parts["upkeep"], "-Q") == "upkeep"


def test_all_workers_run_on_threads_because_cancel_and_drain_are_ours(parts: dict[str, Part]) -> None:
    assert {name: option(part, "--pool") for name, part in parts.items() if name != "engine-cpu"} == {
        "online-cpu": "threads",
        "batch-cpu": "threads",
        "heavy-cpu": "threads",
        "control": "threads",
        "upkeep": "threads",
    }


def test_bulk_work_yields_the_cpu_to_people_who_wait(parts: dict[str, Part]) -> None:
    assert parts["batch-cpu"].nice == parts["heavy-cpu"].nice > parts["online-cpu"].nice == 0


def test_a_gpu_is_pinned_by_its_uuid_for_the_engine_and_its_workers() -> None:
    # When
    engine = agent.engine_part(SETTINGS, GPU, ())
    workers = agent.device_workers(SETTINGS, GPU, ())
    # Then
    assert {part.env["CUDA_VISIBLE_DEVICES"] for part in [engine, *workers]} == {"GPU-aaaa"}
    assert option(engine, "--device") == "cuda"
    assert {part.env["MILLRACE_ENGINE_ENDPOINT"] for part in workers} == {option(engine, "--endpoint")}


def test_the_engine_gets_every_model_and_preloads_the_first(parts: dict[str, Part]) -> None:
    argv = list(parts["engine-cpu"].argv)
    assert [argv[index + 1] for index, word in enumerate(argv) if word == "--model"] == ["a=/models/a", "b=/models/b"]
    assert option(parts["engine-cpu"], "--preload") == "a"


def test_the_engine_gets_the_limits_of_its_device() -> None:
    changed = msgspec.structs.replace(SETTINGS, engine_max_step_seconds=30.0, engine_max_temperature_celsius=70.0)
    engine = by_name(agent.node_parts(changed))["engine-cpu"]
    assert option(engine, "--max-step-seconds") == "30.0"
    assert option(engine, "--max-temperature-celsius") == "70.0"


def test_workers_get_exactly_the_settings_of_their_agent(parts: dict[str, Part]) -> None:
    changed = msgspec.structs.replace(SETTINGS, lease_seconds=7.5)
    worker = by_name(agent.node_parts(changed))["batch-cpu"]
    assert worker.env["MILLRACE_LEASE_SECONDS"] == "7.5"
    assert worker.env["MILLRACE_DATABASE_URL"] == "postgresql://db/x"
