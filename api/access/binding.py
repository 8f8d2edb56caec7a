"""Where the API may listen: other machines reach it only where a key is needed and there is one, and what they send is
encrypted where a certificate says so.
"""

import ssl
from pathlib import Path

from core.access import is_loopback
from core.errors import ConfigurationError
from core.settings import Settings
from db.access import keys
from db.connection import Database


def check_binding(settings: Settings, database: Database) -> None:
    """Raises ConfigurationError where anybody could use the API, or nobody."""
    if is_loopback(settings.host):
        return
    check_open_address(settings)
    with database.begin() as session:
        if not keys.has_usable(session):
            raise ConfigurationError(
                f"MILLRACE_HOST: {settings.host} can be reached by other machines, and there is no API key yet: make "
                "one with `millrace keys create NAME`, or listen on a loopback address"
            )


def check_open_address(settings: Settings) -> None:
    """What can be said without the database. Raises ConfigurationError."""
    if settings.auth == "local" and not is_loopback(settings.host):
        raise ConfigurationError(
            f"MILLRACE_AUTH: `local` is for loopback addresses, and other machines can reach {settings.host}: use "
            "`auto` or `required`"
        )


def check_tls(settings: Settings) -> None:
    """Raises ConfigurationError unless certificate and key are both there, or neither."""
    if not settings.tls_certificate and not settings.tls_key:
        return
    if not settings.tls_certificate or not settings.tls_key:
        raise ConfigurationError("MILLRACE_TLS_CERTIFICATE and MILLRACE_TLS_KEY: expected both or neither")
    for path in (settings.tls_certificate, settings.tls_key):
        if not Path(path).is_file():
            raise ConfigurationError(f"MILLRACE_TLS_CERTIFICATE, MILLRACE_TLS_KEY: there is no file {path}")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            settings.tls_certificate, settings.tls_key, password=_no_password
        )
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"MILLRACE_TLS_CERTIFICATE, MILLRACE_TLS_KEY: expected a PEM chain and its key without a password: {error}"
        ) from error


def _no_password() -> str:
    """Without it OpenSSL would ask at the terminal."""
    raise ValueError("the key has a password")
