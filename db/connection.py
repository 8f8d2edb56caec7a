"""Connections to PostgreSQL: one pooled SQLAlchemy engine per process, one transaction per `Database.begin()`.

Foreign exceptions are translated here: a server that is away becomes `Unavailable`, a value that it cannot
store `InvalidRequest`; anything else passes as it is.
"""

import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import create_engine, event, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    InterfaceError,
    InvalidatePoolError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from core.errors import ConfigurationError, InvalidRequest, Unavailable

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 10.0

# A process that is cut off or stopped between two statements must not hold its rows: the server ends it soon, and
# whoever talks to a machine that is gone hears of it.
IDLE_IN_TRANSACTION_SECONDS = 10
SERVER_OPTIONS = {
    "jit": "off",
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_SECONDS}s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
CLIENT_KEEPALIVES = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]

# SQLAlchemy's, and those of the driver where it is used directly.
_AWAY = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)
# By whoever stood still in the middle of a transaction, and by a server that follows another one now.
_ENDED = (psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.ReadOnlySqlTransaction)


def sqlalchemy_url(url: str) -> URL:
    """`postgresql://…` as people write it, with our driver. Raises ConfigurationError on another database."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(f"MILLRACE_DATABASE_URL: expected postgresql://user@host/name: {error}") from error
    if parsed.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ConfigurationError(
            f"MILLRACE_DATABASE_URL: expected postgresql://user@host/name, got a URL of {parsed.drivername!r}"
        )
    return parsed.set(drivername="postgresql+psycopg")


def make_engine(url: str, *, pool_size: int = 5) -> Engine:
    engine = create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        connect_args={
            "prepare_threshold": 0,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "options": " ".join(f"-c {name}={value}" for name, value in SERVER_OPTIONS.items()),
            "application_name": "millrace",
            **CLIENT_KEEPALIVES,
        },
    )
    event.listen(engine, "checkout", _refuse_broken)
    return engine


def _refuse_broken(connection: "psycopg.Connection[tuple[Any, ...]]", *_: object) -> None:
    """Before each use, instead of a question that would cost as much as the work: the server says nothing to a
    connection that rests, so one with something to read was closed from the other side. The pool makes a new one."""
    if connection.closed or _has_something_to_read(connection.fileno()):
        raise InvalidatePoolError("PostgreSQL closed a connection that rested in the pool")


def _has_something_to_read(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class Database:
    """`with database.begin() as session:` is one transaction: committed at the end, rolled back on an exception."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.engine = make_engine(url, pool_size=pool_size)
        self._quick = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._is_closed = False
        event.listen(self.engine, "checkin", self._close_late)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """Raises Unavailable when the server is away or the pool is exhausted, InvalidRequest when a value cannot be
        stored (a NUL character, a number out of range)."""
        with _translated(), self._sessions.begin() as session:
            yield session

    def run(self, statement: "Statement", values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One statement that is a transaction of its own, for where every request passes: one way to the server instead
        of three. Rows by the names of their columns. Raises as `begin`."""
        with _translated(), self._quick.connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, psycopg.Connection)
            return statement.rows(raw, values)

    def check(self) -> str:
        """The server's version. Raises Unavailable."""
        with self.begin() as session:
            return str(session.execute(text("SHOW server_version")).scalar_one())

    def close(self) -> None:
        """Connections that are in use are closed when they come back."""
        self._is_closed = True
        self.engine.dispose()

    def _close_late(self, _: object, record: ConnectionPoolEntry) -> None:
        if self._is_closed:
            record.invalidate()


def driver(session: Session) -> "psycopg.Connection[tuple[Any, ...]]":
    """The driver's own connection in the session's transaction: for COPY and for bytes without a detour over text."""
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    return connection


class Statement:
    """SQL with `:names`, for where every request passes: SQLAlchemy's own execution costs three times as much as the
    driver's. Rows are plain tuples."""

    def __init__(self, sql: str) -> None:
        self._query = str(text(sql).compile(dialect=_DIALECT)).encode()

    def execute(self, session: Session, values: Mapping[str, Any]) -> "psycopg.Cursor[tuple[Any, ...]]":
        return driver(session).execute(self._query, values)

    def rows(self, connection: "psycopg.Connection[Any]", values: Mapping[str, Any]) -> list[dict[str, Any]]:
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(self._query, values).fetchall()


@contextmanager
def _translated() -> Iterator[None]:
    """Foreign exceptions become those of `core.errors`."""
    try:
        yield
    except (*_AWAY, PoolTimeout) as error:
        raise Unavailable(f"PostgreSQL is away: {_reason(error)}; it will be tried again") from error
    except (DataError, psycopg.DataError) as error:
        raise InvalidRequest(f"PostgreSQL cannot store a value: {_reason(error)}") from error
    except _ENDED as error:
        raise Unavailable(f"PostgreSQL ended the transaction: {_reason(error)}; it will be tried again") from error
    except DBAPIError as error:
        if error.connection_invalidated or isinstance(error.orig, _ENDED):
            raise Unavailable(f"PostgreSQL closed the connection: {_reason(error)}") from error
        raise


def _reason(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0]
