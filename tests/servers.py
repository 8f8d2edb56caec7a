"""PostgreSQL and Valkey for tests: the ones named by MILLRACE_TEST_DATABASE_URL and MILLRACE_TEST_REDIS_URL, or else
embedded ones, started once per session in a directory that disappears.

A test asks for `database` (the URL of a migrated database of its own) or for `redis_url` (empty when it begins).
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import msgspec
import psycopg
import pytest
import redis
from psycopg import sql
from sqlalchemy import make_url

from cli.local.postgresql import NAME as POSTGRESQL
from cli.local.postgresql import SYSTEM_PATH
from cli.local.servers import embedded_servers
from core.redis_url import client_url
from core.settings import Settings
from db.migrations import upgrade
from workers.instance import Instance, directory_mode
from workers.supervisor import Supervisor

# Taken out of the environment: children of tests read their settings there, and refuse names that they do not know.
GIVEN_DATABASE_URL = os.environ.pop("MILLRACE_TEST_DATABASE_URL", None)
GIVEN_REDIS_URL = os.environ.pop("MILLRACE_TEST_REDIS_URL", None)

# These servers need not survive the session, and making a database of its own for each test is mostly waiting for the
# disk. The durable servers of the product have tests of their own.
QUICK = {POSTGRESQL: ("-c", "fsync=off", "-c", "full_page_writes=off")}

_numbers = count(1)


@dataclass(frozen=True)
class Servers:
    database_url: str
    redis_url: str


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    given = Settings(database_url=GIVEN_DATABASE_URL, redis_url=GIVEN_REDIS_URL)
    with temporary_data_directory() as data_path:
        settings = msgspec.structs.replace(given, data_dir=str(data_path))
        instance = Instance.of(settings)
        instance.prepare()
        settings, parts = embedded_servers(settings, print)
        supervisor = Supervisor(instance, print)
        try:
            supervisor.launch([replace(part, argv=[*part.argv, *QUICK.get(part.name, ())]) for part in parts])
            supervisor.wait_ready()
            assert settings.database_url is not None
            assert settings.redis_url is not None
            yield Servers(settings.database_url, settings.redis_url)
        finally:
            supervisor.stop_all()


@pytest.fixture(scope="session")
def database_url(servers: Servers) -> Iterator[str]:
    """The migrated template that `database` copies. Connect to `database` instead: a template must have no guests."""
    with temporary_database(servers.database_url) as url:
        upgrade(url)
        yield url


@pytest.fixture
def database(database_url: str, servers: Servers) -> Iterator[str]:
    with temporary_database(servers.database_url, template=database_url) as url:
        yield url


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """As settings hold it; `core.redis_url` spells it for each library."""
    with redis.Redis.from_url(client_url(servers.redis_url)) as client:
        client.flushdb()
    return servers.redis_url


@contextmanager
def temporary_data_directory(within: Path | None = None) -> Iterator[Path]:
    """As `millrace up` would make it: root's PostgreSQL user gets through. Removed with all that was put elsewhere."""
    root = Path(tempfile.mkdtemp(prefix="millrace-test-", dir=within))
    root.chmod(directory_mode())
    data_path = root / "data"
    instance = Instance.of(Settings(data_dir=str(data_path)))
    try:
        yield data_path
    finally:
        for path in (root, instance.run_path, SYSTEM_PATH / instance.identity):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def temporary_database(server_url: str, template: str | None = None) -> Iterator[str]:
    """server_url: of a user who may create databases.  template: URL of the database to copy."""
    name = f"millrace_test_{os.getpid()}_{next(_numbers)}"
    source = make_url(template).database if template else "template1"
    assert source is not None
    _execute(server_url, "CREATE DATABASE {} TEMPLATE {}", name, source)
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server_url, "DROP DATABASE {} WITH (FORCE)", name)


def _execute(url: str, statement: str, *names: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
