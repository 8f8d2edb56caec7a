"""Connections that rest in the pool while the server goes and comes back."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from core.errors import Unavailable
from db.connection import Database, Statement, driver


@pytest.fixture
def pool(database: str) -> Iterator[Database]:
    pool = Database(database, pool_size=3)
    yield pool
    pool.close()


def test_a_connection_that_the_server_closed_meanwhile_is_replaced_unseen(pool: Database, database: str) -> None:
    # Given three connections that rest
    with pool.begin() as one, pool.begin() as two, pool.begin() as three:
        pids = [session.execute(text("SELECT pg_backend_pid()")).scalar_one() for session in (one, two, three)]
    # When
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s::int[]) AS pid", (pids,))
    # Then
    for _ in range(3):
        with pool.begin() as session:
            assert session.execute(text("SELECT pg_backend_pid()")).scalar_one() not in pids


def test_a_server_that_goes_during_a_copy_is_unavailable(pool: Database, database: str) -> None:
    def copy_and_lose() -> None:
        with pool.begin() as session, driver(session).cursor() as cursor:
            pid = driver(session).info.backend_pid
            with psycopg.connect(database, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            with cursor.copy("COPY (SELECT generate_series(1, 1000)) TO STDOUT") as copy:
                list(copy.rows())

    # When
    with pytest.raises(Unavailable):
        copy_and_lose()
    # Then
    with pool.begin() as session:
        assert session.execute(text("SELECT 1")).scalar_one() == 1


WRITE = Statement("CREATE TABLE made (n int)")


@pytest.mark.parametrize(
    "write",
    [lambda session: session.execute(text("CREATE TABLE made (n int)")), lambda session: WRITE.execute(session, {})],
    ids=["through SQLAlchemy", "through the driver"],
)
def test_a_server_that_follows_another_one_now_is_unavailable(
    pool: Database, write: Callable[[Session], object]
) -> None:
    def write_while_reading() -> None:
        with pool.begin() as session:
            session.execute(text("SET TRANSACTION READ ONLY"))
            write(session)

    with pytest.raises(Unavailable, match="read-only"):
        write_while_reading()


def test_a_connection_that_comes_back_after_the_end_is_closed(pool: Database) -> None:
    # Given
    with pool.begin() as session:
        connection = driver(session)
        # When
        pool.close()
    # Then
    assert connection.closed
