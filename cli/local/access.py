"""Who may use what is started on this machine: whether requests need a key, and the key of this machine's own command
line, which is made at the first start and kept in a file that nobody else may read.
"""

import os
from collections.abc import Callable
from pathlib import Path

from api.access.binding import check_binding, check_open_address, check_tls
from cli.options import InvalidOption
from core.access import hash_key, is_loopback
from core.errors import ConfigurationError
from core.settings import Settings
from db.access import keys
from db.access.keys import NewKey
from db.connection import Database

KEY_FILE = "api-key"
LOCAL_KEY_NAME = "this machine"


def effective_auth(settings: Settings) -> str:
    """`settings`: as they were given, without the URLs of embedded servers. `auto` becomes `local` only where nobody
    but this machine is meant."""
    if settings.auth != "auto":
        return settings.auth
    has_own_servers = settings.database_url is None and settings.redis_url is None
    is_alone = has_own_servers and is_loopback(settings.host) and not settings.trusted_hosts.strip()
    return "local" if is_alone else "required"


def check_access(settings: Settings) -> None:
    """What can be said before anything is started. Raises InvalidOption."""
    try:
        check_tls(settings)
        check_open_address(settings)
    except ConfigurationError as error:
        raise InvalidOption(error.message) from error
    is_new = settings.database_url is None and not key_path(settings).exists()
    if is_new and not is_loopback(settings.host):
        raise InvalidOption(
            f"MILLRACE_HOST: expected a loopback address such as 127.0.0.1, got {settings.host!r}: other machines can "
            "reach it, and there is no API key yet; the first start on loopback makes one"
        )


def prepare_access(settings: Settings, say: Callable[[str], None]) -> None:
    """Makes this machine's key where it has none. Raises ConfigurationError where the API may not be opened."""
    assert settings.database_url is not None
    database = Database(settings.database_url, pool_size=1)
    try:
        check_binding(settings, database)
        _ensure_key(settings, database, say)
    finally:
        database.close()


def _ensure_key(settings: Settings, database: Database, say: Callable[[str], None]) -> None:
    held = read_key(settings)
    with database.begin() as session:
        if held is not None and keys.identify(session, hash_key(held)) is not None:
            return
        _, key = keys.create(session, NewKey(name=LOCAL_KEY_NAME))
    write_key(settings, key)
    say(f"API key of this machine: {key} (kept in {key_path(settings)}; `millrace keys` makes others)")


def key_path(settings: Settings) -> Path:
    return settings.data_path / KEY_FILE


def read_key(settings: Settings) -> str | None:
    """None where there is none, or not for us."""
    try:
        return key_path(settings).read_text(encoding="ascii").strip() or None
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def write_key(settings: Settings, key: str) -> None:
    """Never readable to others, not even for a moment."""
    new = key_path(settings).with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{key}\n")
    new.replace(key_path(settings))
