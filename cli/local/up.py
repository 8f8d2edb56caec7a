"""`millrace up`: everything on one machine. Composes the parts, starts them in order, keeps them up, stops them.

The order: servers and engines, which do not know each other; then migrations; then everything else at once. The engines
wait for the built-in model where it has to be trained first.
"""

import os
import sys
from collections.abc import Callable

import httpx
import msgspec
import redis
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from cli.local.access import check_access, effective_auth, prepare_access
from cli.local.preflight import api_url, check_engine_packages, check_ports, http_host
from cli.local.report import JobProgress, Reporter
from cli.local.servers import check_installed, embedded_servers
from core.access import is_loopback
from core.errors import ConfigurationError, Interrupted, Unavailable
from core.lifeline import PULSE_FILE_VARIABLE, PulseWatch, follow_parent
from core.redis_url import client_url
from core.settings import BUILTIN_MODEL, Settings, builtin_model_directory, settings_environment
from db.connection import Database
from db.migrations import upgrade
from workers.agent import node_devices, node_parts, register
from workers.instance import Instance, end_leftovers
from workers.part import Part, python_argv
from workers.supervisor import Supervisor

BUILTIN_JOB = "built-in-model"
READY_FD_VARIABLE = "MILLRACE__READY_FD"
TRAINING_SECONDS = 600.0
PROBE_SECONDS = 2.0
BEAT_SCHEDULER = "tasks.scheduler:SteadyScheduler"
FLOWER_COLUMNS = "name,kwargs,state,received,runtime,worker"


def up(settings: Settings, with_flower: bool = True) -> None:
    """Returns when it was asked to stop and everything has. Raises a MillraceError when the start fails."""
    follow_parent()
    reporter = Reporter()
    check_access(settings)
    check_engine_packages(settings)
    check_installed(settings)
    node_devices(settings)  # an unknown device is refused before anything starts
    instance = Instance.of(settings)
    with instance.lock():
        _end_leftovers(instance, reporter.say)
        try:
            instance.prepare()
            check_ports(settings, with_flower)
            supervisor = Supervisor(instance, reporter.say)
            with supervisor.signals():
                _serve(settings, with_flower, supervisor, reporter)
        finally:
            instance.clear()


def _serve(settings: Settings, with_flower: bool, supervisor: Supervisor, reporter: Reporter) -> None:
    try:
        _start(settings, with_flower, supervisor, reporter)
        reporter.say(f"Millrace is ready: {api_url(settings)}")
        _tell_parent(api_url(settings))
        supervisor.run()
    except Interrupted:
        reporter.say("stopped while starting")
    finally:
        reporter.close()
        supervisor.stop_all()


def _start(settings: Settings, with_flower: bool, supervisor: Supervisor, reporter: Reporter) -> None:
    settings = msgspec.structs.replace(settings, auth=effective_auth(settings), api_key="")
    settings, servers = embedded_servers(settings, reporter.say)
    training = builtin_model_part(settings)
    engines, workers = split_engines(node_parts(settings, engine_after=tuple(part.name for part in training)))
    progress = JobProgress(BUILTIN_JOB, Instance.of(settings).log_path(BUILTIN_JOB), reporter)
    supervisor.launch(servers)
    supervisor.launch([*training, *engines])
    supervisor.wait_ready([part.name for part in servers], on_tick=progress.follow)
    migrate(settings)
    prepare_access(settings, reporter.say)
    supervisor.launch(workers)  # later than the engines, so that they stop first: what they run is written down
    supervisor.launch([beat_part(settings), api_part(settings), *([flower_part(settings)] if with_flower else [])])
    supervisor.wait_ready(on_tick=progress.follow)


def split_engines(parts: list[Part]) -> tuple[list[Part], list[Part]]:
    """Engines, and the rest."""
    engines = [part for part in parts if part.name.startswith("engine-")]
    return engines, [part for part in parts if part not in engines]


def migrate(settings: Settings) -> None:
    """Bring the database up to date and write down what this node serves. Raises Unavailable or ConfigurationError."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    check_redis(settings.redis_url)
    database = Database(settings.database_url, pool_size=1)
    try:
        check_database(database)
        upgrade(settings.database_url)
        register(settings, database)
    except CommandError as error:
        raise ConfigurationError(
            f"the database cannot be brought up to date: {error}; if a newer Millrace has used it, install that one"
        ) from error
    except DBAPIError as error:
        raise ConfigurationError(f"the database cannot be brought up to date: {error.orig}") from error
    finally:
        database.close()


def check_database(database: Database) -> None:
    """Raises Unavailable, naming the setting."""
    try:
        database.check()
    except Unavailable as error:
        raise Unavailable(f"cannot use MILLRACE_DATABASE_URL: {error.message}") from error


def check_redis(url: str) -> str:
    """The server's version. Raises Unavailable."""
    try:
        with redis.Redis.from_url(client_url(url), socket_timeout=5, socket_connect_timeout=5) as client:
            return str(client.info("server")["redis_version"])
    except (redis.RedisError, ValueError) as error:
        raise Unavailable(f"cannot reach MILLRACE_REDIS_URL ({error}): is the server running?") from error


def builtin_model_part(settings: Settings) -> list[Part]:
    """Trains the built-in model, or finds that it is there. Empty when nobody asked for it."""
    directory = builtin_model_directory(settings.data_path)
    if directory not in settings.model_sources.values():
        return []
    argv = python_argv("engine.jobs", "train-builtin", "--out", directory, executable=sys.executable)
    return [Part(BUILTIN_JOB, argv, note=BUILTIN_MODEL, runs_once=True, ready_seconds=TRAINING_SECONDS)]


def beat_part(settings: Settings) -> Part:
    """The schedule lives in the code, and what it last did does not matter: nothing is kept in a file, which a SIGKILL
    could spoil."""
    arguments = ("-A", "tasks.app", "beat", "--scheduler", BEAT_SCHEDULER, "-l", settings.log_level)
    pulse_file = settings.run_path / "beat.pulse"
    return Part(
        "beat",
        _celery(*arguments),
        env={**settings_environment(settings), PULSE_FILE_VARIABLE: str(pulse_file)},
        alive=PulseWatch(pulse_file),
    )


def api_part(settings: Settings) -> Part:
    return Part(
        "api",
        python_argv("api.server", executable=sys.executable),
        env=settings_environment(settings),
        ready=lambda: _answers(f"{api_url(settings)}/readyz"),
        alive=lambda: _answers(f"{api_url(settings)}/healthz"),
        note=api_url(settings),
    )


def flower_part(settings: Settings) -> Part:
    host = flower_host(settings)
    options = (f"--address={host}", f"--port={settings.flower_port}", f"--tasks-columns={FLOWER_COLUMNS}")
    return Part(
        "flower",
        _celery("-A", "tasks.app", "flower", *options),
        env={**settings_environment(settings), **_without("FLOWER_")},
        ready=lambda: _answers(f"http://{http_host(host)}:{settings.flower_port}/healthcheck"),
        note=f"http://{http_host(host)}:{settings.flower_port}",
    )


def flower_host(settings: Settings) -> str:
    """It knows no keys, so it stays on this machine whatever the API does."""
    return settings.host if is_loopback(settings.host) else "127.0.0.1"


def _celery(*arguments: str) -> tuple[str, ...]:
    return python_argv("celery", *arguments, executable=sys.executable)


def _without(prefix: str) -> dict[str, None]:
    return {name: None for name in os.environ if name.startswith(prefix)}


def _answers(url: str) -> bool:
    """The certificate is for the names that others use, not for the address that we ask."""
    try:
        return httpx.get(url, timeout=PROBE_SECONDS, verify=False, trust_env=False).is_success  # noqa: S501
    except httpx.HTTPError:
        return False


def _end_leftovers(instance: Instance, say: Callable[[str], None]) -> None:
    ended = end_leftovers(instance.identity)
    if ended:
        say(f"ended what an earlier `millrace up` left behind: {', '.join(ended)}")


def _tell_parent(url: str) -> None:
    """To `cli.local.running`, which waits for it."""
    descriptor = os.environ.pop(READY_FD_VARIABLE, None)
    if descriptor is not None:
        with os.fdopen(int(descriptor), "w") as pipe:
            pipe.write(f"{url}\n")
