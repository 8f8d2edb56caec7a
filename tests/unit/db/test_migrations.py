from alembic.script import ScriptDirectory

from db.migrations import alembic_config, newest_revision, script_directory

URL = "postgresql://user:p%25ss@host/name"


def test_the_migrations_form_one_line() -> None:
    # Given
    scripts = ScriptDirectory(str(script_directory()))

    # Then
    assert len(scripts.get_heads()) == 1
    assert len(scripts.get_bases()) == 1
    assert newest_revision() == scripts.get_heads()[0]


def test_every_migration_can_be_undone() -> None:
    scripts = ScriptDirectory(str(script_directory()))
    assert [script.revision for script in scripts.walk_revisions() if not hasattr(script.module, "downgrade")] == []


def test_a_password_with_a_percent_sign_survives_the_configuration() -> None:
    url = alembic_config(URL).attributes["url"]
    assert url.password == "p%ss"
