"""Composition root of the Celery workers: `celery -A workers.boot worker …`. Builds the services, installs them for the
tasks, and turns a warm shutdown into a drain: running chunks write what they have and hand the rest back.
"""

import gc
import logging
import os
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from celery import signals
from redis import Redis

from core import logs
from core.job import JobKind
from core.lifeline import pulse_path
from core.redis_url import client_url
from core.settings import Settings, load_settings
from db.connection import Database
from db.files import open_file_store
from db.native.heavy import Claimant
from tasks import services
from tasks.app import app
from tasks.factory import DEFAULT_BROKER_URL
from tasks.messages import Messages
from tasks.relay import RedisRelay
from tasks.services import Services
from workers.agent import HEAVY_VARIABLE, READY_FILE_VARIABLE, THREADS_VARIABLE
from workers.chunks.run import EngineChunkRunner, RunnerOptions
from workers.engine_client import EngineClient
from workers.heavy.benchmark import BenchmarkWork
from workers.heavy.engine_access import EngineAccess
from workers.heavy.quantization import QuantizationWork
from workers.heavy.runner import HeavyJobRunner
from workers.heavy.warming import WarmingWork
from workers.heavy.work import Work
from workers.presence import Presence
from workers.pulse import LoopTurns, Pulse
from workers.telemetry import Telemetry

__all__ = ["app", "build_services"]

logger = logging.getLogger(__name__)

DEFAULT_THREADS = 4
MOST_CONNECTIONS = 16  # a thread needs one for a few milliseconds of the seconds that an answer takes
GC_ALLOCATIONS = 10_000
EXIT_AT_ONCE = 1

_stopping = threading.Event()
_presences: list[Presence] = []
_telemetries: list[Telemetry] = []
_pulses: list[Pulse] = []
app.steps["worker"].add(LoopTurns)


def build_services(settings: Settings, stopping: threading.Event) -> Services:
    """A chunk runner comes with it where the settings name an engine."""
    num_threads = int(os.environ.get(THREADS_VARIABLE, DEFAULT_THREADS))
    assert settings.database_url is not None
    database = Database(settings.database_url, pool_size=min(num_threads, MOST_CONNECTIONS) + 2)
    redis: Redis = Redis.from_url(client_url(settings.redis_url or DEFAULT_BROKER_URL), socket_timeout=10)
    relay = RedisRelay(redis)
    has_engine = bool(settings.engine_endpoint)
    return Services(
        settings=settings,
        database=database,
        files=open_file_store(settings.file_store, database),
        redis=redis,
        messages=Messages(app),
        relay=relay,
        chunks=_chunk_runner(settings, database, relay, stopping) if has_engine and not _is_heavy() else None,
        heavy=_heavy_runner(settings, database, stopping) if has_engine and _is_heavy() else None,
    )


def _is_heavy() -> bool:
    return HEAVY_VARIABLE in os.environ


def _heavy_runner(settings: Settings, database: Database, stopping: threading.Event) -> HeavyJobRunner:
    engine = EngineAccess(settings.engine_endpoint, settings.engine_wait_seconds)
    works: dict[JobKind, Work] = {
        JobKind.WARMING: WarmingWork(engine),
        JobKind.BENCHMARK: BenchmarkWork(engine),
        JobKind.QUANTIZATION: QuantizationWork(settings.model_sources, settings.artifacts_path, settings.node_name),
    }
    claimant = Claimant(
        owner=_owner(settings),
        node=settings.node_name,
        device=settings.device,
        models=tuple(settings.model_sources),
        lease_seconds=settings.lease_seconds,
    )
    return HeavyJobRunner(database, works, claimant, stopping)


def _owner(settings: Settings) -> str:
    return f"{settings.device}@{settings.node_name}:{os.getpid()}-{uuid4().hex[:8]}"


def _chunk_runner(
    settings: Settings, database: Database, relay: RedisRelay, stopping: threading.Event
) -> EngineChunkRunner:
    owner = _owner(settings)
    engine = EngineClient(settings.engine_endpoint, name=owner, stopping=stopping)
    engine.start()
    options = RunnerOptions(
        owner=owner,
        models=tuple(settings.model_sources),
        lease_seconds=settings.lease_seconds,
        write_interval_seconds=settings.write_interval_seconds,
        engine_wait_seconds=settings.engine_wait_seconds,
        max_request_crashes=settings.max_request_crashes,
        max_request_attempts=settings.max_request_attempts,
        retry_seconds=settings.retry_seconds,
        oldest_claim_fraction=settings.oldest_claim_fraction,
    )
    return EngineChunkRunner(database, engine, options, stopping, relay)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    logs.configure(load_settings().log_level)


@signals.worker_init.connect  # type: ignore[untyped-decorator]
@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _start(**_: Any) -> None:
    """`worker_init` comes in the worker itself, `worker_process_init` in the children of prefork, which spawn."""
    settings = load_settings()
    built = build_services(settings, _stopping)
    services.install(built)
    if built.chunks is not None:
        _presences.append(Presence(built.database, settings.node_name, settings.device, built.chunks.model_kinds))
        _presences[-1].start()
        _telemetries.append(Telemetry(built.database, settings.node_name, settings.device, built.chunks.hello))
        _telemetries[-1].start()


def _settle_memory() -> None:
    """What is there when the work begins stays to the end, so the garbage collector need not look through it again; and
    rows come by the thousand, so it looks after thousands of allocations, not hundreds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 20)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _report_ready(**_: Any) -> None:
    _settle_memory()
    path = os.environ.get(READY_FILE_VARIABLE)
    if path is not None:
        Path(path).touch()
    watched = pulse_path()
    if watched is not None:
        _pulses.append(Pulse(watched, services.current().redis))
        _pulses[-1].start()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    """In the signal handler, at every SIGTERM."""
    if _stopping.is_set():
        _exit_now()
    logger.info("draining: running chunks write what they have and hand the rest back", extra={"event": "worker.drain"})
    _stopping.set()


def _exit_now() -> None:
    """The second wish to end: without waiting for anything, and with all that this worker started."""
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(EXIT_AT_ONCE)


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop(**_: Any) -> None:
    for pulse in _pulses:
        pulse.close()
    for presence in _presences:
        presence.close()
    for telemetry in _telemetries:
        telemetry.close()
    services.uninstall()
