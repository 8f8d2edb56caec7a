"""Who may use what is started on this machine: whether requests need a key."""

from cli.local.preflight import is_loopback
from core.settings import Settings


def effective_auth(settings: Settings) -> str:
    """`settings`: as they were given, without the URLs of embedded servers. `auto` becomes `local` only where nobody
    but this machine is meant."""
    if settings.auth != "auto":
        return settings.auth
    has_own_servers = settings.database_url is None and settings.redis_url is None
    is_alone = has_own_servers and is_loopback(settings.host) and not settings.trusted_hosts.strip()
    return "local" if is_alone else "required"
