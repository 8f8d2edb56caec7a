"""Runs the Alembic migrations: from the `alembic/` folder of a checkout, or from the copy inside an installed wheel.

Two processes that upgrade at once are harmless: `alembic/env.py` takes an advisory lock.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from db.connection import make_engine, sqlalchemy_url

_HERE = Path(__file__).resolve().parent


def script_directory() -> Path:
    packaged = _HERE / "migration_scripts"
    return packaged if packaged.is_dir() else _HERE.parent / "alembic"


def alembic_config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(script_directory()).replace("%", "%%"))
    config.attributes["url"] = sqlalchemy_url(url)
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Brings the database of `url` (postgresql://…) to a revision; does nothing when it is there."""
    command.upgrade(alembic_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    command.downgrade(alembic_config(url), revision)


def newest_revision() -> str | None:
    return ScriptDirectory(str(script_directory())).get_current_head()


def current_revision(url: str) -> str | None:
    """The revision that the database is at; None before the first migration."""
    engine = make_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
