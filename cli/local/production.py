"""The parts of a Millrace that run on machines of their own, each as one command: `millrace migrate`, `node`, `api`,
`beat`, `flower`. They share one PostgreSQL and one Redis, named by the settings; `millrace up` is all of them together.
"""

import os
import sys
from collections.abc import Sequence

from api.access.binding import check_binding
from cli.local.access import check_access
from cli.local.preflight import check_engine_packages, check_loopback
from cli.local.report import JobProgress, Reporter
from cli.local.up import BUILTIN_JOB, api_part, beat_part, builtin_model_part, flower_part, split_engines
from core.errors import ConfigurationError, Interrupted
from core.lifeline import PULSE_FILE_VARIABLE
from core.settings import Settings, settings_environment
from db.connection import Database
from db.migrations import newest_revision, upgrade
from workers.agent import node_devices, node_parts, register
from workers.instance import Instance, end_leftovers
from workers.part import Part
from workers.supervisor import Supervisor


def check_urls(settings: Settings) -> None:
    """Raises ConfigurationError unless both servers are named: only `millrace up` brings its own."""
    for name in ("database_url", "redis_url"):
        if getattr(settings, name) is None:
            raise ConfigurationError(
                f"MILLRACE_{name.upper()}: expected a URL; only `millrace up` brings its own servers"
            )


def migrate(settings: Settings) -> None:
    """Brings the database to the revision of this release. Raises ConfigurationError, Unavailable."""
    check_urls(settings)
    assert settings.database_url is not None
    database = Database(settings.database_url, pool_size=1)
    try:
        database.check()
    finally:
        database.close()
    upgrade(settings.database_url)
    Reporter().say(f"the database is at revision {newest_revision()}")


def node(settings: Settings) -> None:
    """Runs the engines and Celery workers of this machine until it is asked to stop."""
    reporter = Reporter()
    check_urls(settings)
    check_engine_packages(settings)
    node_devices(settings)
    instance = Instance.of(settings)
    with instance.lock():
        end_leftovers(instance.identity)
        try:
            instance.prepare()
            supervisor = Supervisor(instance, reporter.say)
            with supervisor.signals():
                _serve_node(settings, supervisor, reporter)
        finally:
            instance.clear()


def _serve_node(settings: Settings, supervisor: Supervisor, reporter: Reporter) -> None:
    training = builtin_model_part(settings)
    progress = JobProgress(BUILTIN_JOB, Instance.of(settings).log_path(BUILTIN_JOB), reporter)
    try:
        _register(settings)
        engines, workers = split_engines(node_parts(settings, engine_after=tuple(part.name for part in training)))
        supervisor.launch([*training, *engines])
        supervisor.launch(workers)  # stopped before the engines, so that what they run is written down
        supervisor.wait_ready(on_tick=progress.follow)
        reporter.say(f"node {settings.node_name} is ready: {', '.join(settings.model_sources)}")
        supervisor.run()
    except Interrupted:
        reporter.say("stopped while starting")
    finally:
        reporter.close()
        supervisor.stop_all()


def _register(settings: Settings) -> None:
    assert settings.database_url is not None
    database = Database(settings.database_url, pool_size=1)
    try:
        register(settings, database)
    finally:
        database.close()


def api(settings: Settings) -> None:
    check_urls(settings)
    check_access(settings)
    assert settings.database_url is not None
    database = Database(settings.database_url, pool_size=1)
    try:
        check_binding(settings, database)
    finally:
        database.close()
    _become(api_part(settings), settings)


def beat(settings: Settings) -> None:
    check_urls(settings)
    _become(beat_part(settings), settings)


def flower(settings: Settings) -> None:
    check_urls(settings)
    check_loopback(settings.host)
    _become(flower_part(settings), settings)


def _become(part: Part, settings: Settings) -> None:
    """Replaces this process, so that signals and exit statuses are the part's own."""
    environment = {**os.environ, **settings_environment(settings), **part.env, PULSE_FILE_VARIABLE: None}
    argv: Sequence[str] = part.argv
    sys.stdout.flush()
    empty = Instance.of(settings).working_path(part.name)  # Celery puts the current directory on the import path
    empty.mkdir(parents=True, exist_ok=True)
    os.chdir(empty)
    defined = {name: value for name, value in environment.items() if value is not None}
    os.execve(argv[0], list(argv), defined)  # noqa: S606 -- a list of arguments of our own
