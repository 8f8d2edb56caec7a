"""A node: which parts run on this machine, an engine and its Celery workers per device, and two workers for upkeep.
Describes them for a supervisor and writes down what the node serves; starts nothing itself.
"""

import sys
from collections.abc import Sequence

from core.errors import ModelFailure
from core.job import ServiceClass
from core.lifeline import PULSE_FILE_VARIABLE, PulseWatch
from core.protocol import MODEL_FAILED, MODEL_LOADING
from core.settings import Settings, settings_environment
from db import models
from db.connection import Database
from tasks.queues import CONTROL, UPKEEP, heavy_queue, inference_queues
from workers.devices import Device, choose_devices, find_gpus
from workers.engine_client import probe
from workers.part import Part, python_argv

ENGINE_READY_SECONDS = 3600.0  # a hub model may have to be downloaded first
ENGINE_ALIVE_SECONDS = 120.0  # its own watchdog comes first; this is for one that is stopped altogether
WORKER_GRACE_SECONDS = 30.0
BATCH_NICE = 10  # bulk work yields the CPU to people who wait
CONTROL_THREADS = 2
# Chunks of long rows are short: so many fill a device's slots.
CPU_BATCH_THREADS, GPU_BATCH_THREADS = 2, 8
# Idle OpenMP threads that spin would take the cores from the workers and the database of a CPU-only machine.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
READY_FILE_VARIABLE = "MILLRACE__READY_FILE"
THREADS_VARIABLE = "MILLRACE__THREADS"
HEAVY_VARIABLE = "MILLRACE__HEAVY"  # a worker of heavy jobs, which claims no chunks of requests


def register(settings: Settings, database: Database) -> None:
    """Writes down which models the devices of this node serve, replacing what it said before."""
    devices = [device.name for device in node_devices(settings)]
    with database.begin() as session:
        models.place(session, node=settings.node_name, devices=devices, sources=settings.model_sources)


def node_devices(settings: Settings) -> list[Device]:
    return choose_devices(settings.devices, find_gpus())


def node_parts(settings: Settings, after: tuple[str, ...] = (), engine_after: tuple[str, ...] = ()) -> list[Part]:
    """after: what the Celery workers need running first.  engine_after: what the engines need (a trained model)."""
    parts: list[Part] = []
    for device in node_devices(settings):
        parts.append(engine_part(settings, device, engine_after))
        parts += device_workers(settings, device, after)
    parts.append(_worker(settings, "control", ("threads", CONTROL_THREADS), [CONTROL], after))
    parts.append(_worker(settings, "upkeep", ("threads", 1), [UPKEEP], after))
    return parts


def engine_endpoint(settings: Settings, device: Device) -> str:
    return f"ipc://{settings.run_path}/engine-{device.name}.sock"


def engine_part(settings: Settings, device: Device, after: tuple[str, ...]) -> Part:
    endpoint = engine_endpoint(settings, device)
    pulse_file = settings.run_path / f"engine-{device.name}.pulse"
    return Part(
        name=f"engine-{device.name}",
        argv=python_argv("engine.server", *_engine_arguments(settings, device, endpoint), executable=sys.executable),
        env={
            "CUDA_VISIBLE_DEVICES": device.uuid or "",
            "TOKENIZERS_PARALLELISM": "false",
            PULSE_FILE_VARIABLE: str(pulse_file),
            **PATIENT_THREADS,
        },
        after=after,
        ready=lambda: _is_engine_ready(endpoint),
        ready_seconds=ENGINE_READY_SECONDS,
        alive=PulseWatch(pulse_file),
        alive_seconds=ENGINE_ALIVE_SECONDS,
        note=device.description,
    )


def _engine_arguments(settings: Settings, device: Device, endpoint: str) -> list[str]:
    sources = settings.model_sources
    arguments = ["--endpoint", endpoint, "--device", "cuda" if device.is_gpu else "cpu"]
    for name, source in sources.items():
        arguments += ["--model", f"{name}={source}"]
    arguments += ["--preload", next(iter(sources)), "--dtype", settings.engine_dtype]
    arguments += ["--slots", str(settings.engine_slots), "--prefill-tokens", str(settings.engine_prefill_tokens)]
    arguments += ["--kv", settings.engine_kv]
    arguments += ["--no-native"] * (settings.engine_kernels == "torch")
    arguments += ["--no-graphs"] * (settings.engine_graphs == "off")
    arguments += ["--no-prefix-reuse"] * (settings.engine_prefix_reuse == "off")
    return [
        *arguments,
        "--max-context-tokens",
        str(settings.max_context_tokens),
        "--threads",
        str(settings.engine_threads),
        "--max-step-seconds",
        str(settings.engine_max_step_seconds),
        "--max-temperature-celsius",
        str(settings.engine_max_temperature_celsius),
    ]


def _is_engine_ready(endpoint: str) -> bool:
    """Raises ModelFailure when a model that should be there cannot be loaded."""
    hello = probe(endpoint)
    if hello is None:
        return False
    for model in hello.models:
        if model.state == MODEL_FAILED:
            raise ModelFailure(model.error)
    return all(model.state != MODEL_LOADING for model in hello.models)


def device_workers(settings: Settings, device: Device, after: tuple[str, ...]) -> list[Part]:
    names = list(settings.model_sources)
    pinned = {"MILLRACE_DEVICE": device.name, "CUDA_VISIBLE_DEVICES": device.uuid or ""}
    env = {**pinned, "MILLRACE_ENGINE_ENDPOINT": engine_endpoint(settings, device)}
    online = ("threads", settings.online_threads)
    batch = ("threads", settings.batch_threads or (GPU_BATCH_THREADS if device.is_gpu else CPU_BATCH_THREADS))
    heavy = ("threads", 1)
    return [
        _worker(settings, f"online-{device.name}", online, inference_queues(ServiceClass.ONLINE, names), after, env),
        _worker(
            settings, f"batch-{device.name}", batch, inference_queues(ServiceClass.BATCH, names), after, env, BATCH_NICE
        ),
        _worker(
            settings,
            f"heavy-{device.name}",
            heavy,
            [heavy_queue(settings.node_name)],
            after,
            {**env, HEAVY_VARIABLE: "1"},
            BATCH_NICE,
        ),
    ]


def _worker(
    settings: Settings,
    name: str,
    pool: tuple[str, int],
    queues: Sequence[str],
    after: tuple[str, ...],
    env: dict[str, str] | None = None,
    nice: int = 0,
) -> Part:
    ready_file, pulse_file = settings.run_path / f"{name}.ready", settings.run_path / f"{name}.pulse"
    arguments = [
        "-A",
        "workers.boot",
        "worker",
        "--pool",
        pool[0],
        "-c",
        str(pool[1]),
        "-n",
        f"{name}@{settings.node_name}",
        "-Q",
        ",".join(queues),
    ]
    arguments += ["-l", settings.log_level, "--without-gossip", "--without-mingle"]
    return Part(
        name=name,
        argv=python_argv("celery", *arguments, executable=sys.executable),
        env={
            **settings_environment(settings),
            **(env or {}),
            READY_FILE_VARIABLE: str(ready_file),
            PULSE_FILE_VARIABLE: str(pulse_file),
            THREADS_VARIABLE: str(pool[1]),
        },
        prepare=lambda: ready_file.unlink(missing_ok=True),
        ready=ready_file.exists,
        alive=PulseWatch(pulse_file),
        after=after,
        grace_seconds=WORKER_GRACE_SECONDS,
        nice=nice,
    )
