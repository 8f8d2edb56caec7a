"""Migrations lead to the schema of the code, down and up again on a filled database."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from db import migrations
from db.connection import Database
from db.tables import Row
from tests.world import World, success


def test_the_migrated_database_has_the_schema_of_the_code(database: str) -> None:
    # Given
    connection = Database(database)
    # When
    with connection.engine.connect() as opened:
        context = MigrationContext.configure(opened, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, Row.metadata)
    connection.close()
    # Then
    assert differences == []


def test_migrations_go_down_and_up_on_a_filled_database(world: World) -> None:
    # Given
    world.start_job(20)
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(0)])
    url = world.services.settings.database_url
    assert url is not None
    # When
    migrations.downgrade(url, "base")
    # Then
    assert migrations.current_revision(url) is None
    # When
    migrations.upgrade(url)
    # Then
    assert migrations.current_revision(url) == migrations.newest_revision()
    with world.database.begin() as session:
        assert session.execute(text("SELECT count(*) FROM jobs")).scalar() == 0


def test_upgrading_twice_changes_nothing(database: str) -> None:
    # When
    migrations.upgrade(database)
    # Then
    assert migrations.current_revision(database) == migrations.newest_revision()
