from pathlib import Path

import pytest
from sqlalchemy import text

from core.errors import ConfigurationError, Unavailable
from db.connection import Database, sqlalchemy_url


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_url_as_people_write_it_gets_our_driver(scheme: str) -> None:
    # When
    url = sqlalchemy_url(f"{scheme}://user:secret@host:5433/name?sslmode=require")

    # Then
    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.password, url.host, url.port, url.database) == ("user", "secret", "host", 5433, "name")
    assert url.query == {"sslmode": "require"}


def test_a_url_of_a_unix_socket_is_kept() -> None:
    url = sqlalchemy_url("postgresql://millrace@/millrace?host=/run/postgresql")
    assert (url.host, url.query["host"]) == (None, "/run/postgresql")


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite://", "postgresql+asyncpg://host/name"])
def test_another_database_or_driver_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="MILLRACE_DATABASE_URL: expected postgresql://"):
        sqlalchemy_url(url)


def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    # Given
    database = Database(f"postgresql://millrace@/millrace?host={tmp_path}")

    # When
    with pytest.raises(Unavailable) as caught, database.begin() as session:
        session.execute(text("SELECT 1"))

    # Then
    assert caught.value.is_retryable
    assert "\n" not in caught.value.message
    database.close()
