"""`millrace keys`, and the key that the first start leaves for the command line of its own machine."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.client import NO_KEY, server_of
from cli.local.access import key_path, prepare_access, read_key
from cli.main import app
from core.access import LOCAL_IDENTITY, Limits, Scope, hash_key
from core.errors import MillraceError
from db.access import keys
from tests.integration.access.keys import make_key
from tests.world import World, changed

Millrace = Callable[..., str]


@pytest.fixture
def millrace(world: World, monkeypatch: pytest.MonkeyPatch) -> Millrace:
    """Runs a command on the test's own database and returns what it prints."""
    assert world.services.settings.database_url is not None
    monkeypatch.setenv("MILLRACE_DATABASE_URL", world.services.settings.database_url)
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments, catch_exceptions=True)
        if isinstance(done.exception, MillraceError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def test_a_key_is_shown_once_and_then_known_by_its_beginning(millrace: Millrace) -> None:
    # When
    key = millrace("keys", "create", "laptop").strip()
    listed = millrace("keys", "ls")
    # Then
    assert key.startswith("mr_")
    assert len(key) >= 40
    assert key[:10] in listed
    assert key not in listed
    assert "laptop" in listed


def test_what_is_asked_of_a_key_is_what_it_gets(world: World, millrace: Millrace) -> None:
    # When
    options = ["--tenant", "lab", "--scope", "read", "--scope", "admin", "--expires", "90d", "--max-priority", "3"]
    limits = ["--requests-per-minute", "60", "--tokens-per-minute", "9000", "--concurrent-jobs", "4"]
    shown = json.loads(millrace("keys", "create", "ci", *options, *limits, "--json"))
    millrace("keys", "limit", "lab", "--concurrent-jobs", "9")
    # Then
    with world.database.begin() as session:
        identity = keys.identify(session, hash_key(shown["key"]))
    assert identity is not None
    assert (identity.tenant, identity.scopes) == ("lab", frozenset({Scope.READ, Scope.ADMIN}))
    assert (identity.max_priority, identity.limits) == (3, Limits(60, 9000, 4))
    assert identity.tenant_limits == Limits(None, None, 9)
    assert shown["expires_at"] is not None


def test_by_default_a_key_may_submit_and_read_but_not_run_the_place(millrace: Millrace) -> None:
    assert json.loads(millrace("keys", "create", "ci", "--json"))["scopes"] == ["read", "submit"]


@pytest.mark.parametrize("name", ["id", "prefix"])
def test_a_key_is_revoked_by_its_id_or_its_beginning(world: World, millrace: Millrace, name: str) -> None:
    # Given
    shown = json.loads(millrace("keys", "create", "ci", "--json"))
    # When
    revoked = json.loads(millrace("keys", "revoke", shown[name], "--json"))
    # Then
    assert revoked["state"] == "revoked"
    assert "revoked" in millrace("keys", "ls")
    with world.database.begin() as session:
        assert keys.identify(session, hash_key(shown["key"])) is None


def test_a_key_that_nobody_has_and_a_time_that_is_none_are_sentences(millrace: Millrace) -> None:
    with pytest.raises(MillraceError, match="no key 'mr_nothing'"):
        millrace("keys", "revoke", "mr_nothing")
    with pytest.raises(MillraceError, match="expected a time such as `90d`"):
        millrace("keys", "create", "ci", "--expires", "soon")


def test_keys_of_one_tenant_are_listed_alone(world: World, millrace: Millrace) -> None:
    # Given
    make_key(world, tenant="one")
    make_key(world, tenant="two")
    # When
    listed = json.loads(millrace("keys", "ls", "--tenant", "two", "--json"))
    # Then
    assert [key["tenant"] for key in listed] == ["two"]


def test_the_first_start_makes_a_key_for_this_machine_and_later_ones_keep_it(world: World, tmp_path: Path) -> None:
    # Given
    settings = changed(world.services.settings, data_dir=str(tmp_path))
    said: list[str] = []
    # When
    prepare_access(settings, said.append)
    first = read_key(settings)
    prepare_access(settings, said.append)
    # Then
    assert first is not None
    assert read_key(settings) == first
    assert [first in line for line in said] == [True]
    assert stat.S_IMODE(key_path(settings).stat().st_mode) == 0o600
    with world.database.begin() as session:
        identity = keys.identify(session, hash_key(first))
    assert identity is not None
    assert (identity.tenant, identity.scopes) == (LOCAL_IDENTITY.tenant, LOCAL_IDENTITY.scopes)


def test_a_key_that_the_database_does_not_know_is_made_anew(world: World, tmp_path: Path) -> None:
    # Given
    settings = changed(world.services.settings, data_dir=str(tmp_path))
    key_path(settings).write_text("mr_of_another_database")
    # When
    prepare_access(settings, print)
    # Then
    assert read_key(settings) != "mr_of_another_database"


def test_the_key_of_this_machine_is_not_sent_to_others(world: World, tmp_path: Path) -> None:
    # Given
    settings = changed(world.services.settings, data_dir=str(tmp_path))
    key_path(settings).write_text("mr_local")
    # When / Then
    assert server_of(settings, None).key == "mr_local"
    assert server_of(settings, "https://llm.example").key == NO_KEY
    assert server_of(changed(settings, api_key="mr_team"), "https://llm.example").key == "mr_team"
    assert server_of(settings, f"http://127.0.0.1:{settings.port}/") == server_of(settings, None)
    assert server_of(settings, f"http://127.0.0.1:{settings.port + 1}").key == NO_KEY
