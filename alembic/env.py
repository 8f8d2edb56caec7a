"""Alembic's entry point: connects with the URL that `db.migrations` hands over (or `MILLRACE_DATABASE_URL` when Alembic
is run by hand), one transaction per migration, one upgrade at a time."""

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from core.errors import ConfigurationError
from core.settings import load_settings
from db.connection import sqlalchemy_url
from db.tables import Row

UPGRADE_LOCK = 0x6D696C6C  # "mill"


def database_url() -> URL:
    handed_over = context.config.attributes.get("url")
    if isinstance(handed_over, URL):
        return handed_over
    url = load_settings().database_url
    if url is None:
        raise ConfigurationError("set MILLRACE_DATABASE_URL to migrate by hand; `millrace up` migrates by itself")
    return sqlalchemy_url(url)


def run() -> None:
    engine = create_engine(database_url(), poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": UPGRADE_LOCK})
        connection.commit()
        try:
            connection.execute(text("SET lock_timeout = '4s'"))
            connection.commit()
            context.configure(connection=connection, target_metadata=Row.metadata, transaction_per_migration=True)
            with context.begin_transaction():
                context.run_migrations()
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": UPGRADE_LOCK})
            connection.commit()
    engine.dispose()


run()
