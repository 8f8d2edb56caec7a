"""kombu's Redis transport with one client per channel. kombu makes a new client of redis-py for every command, which
costs more than the command; a client is only a view of a pool, so one will do."""

from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, Transport


class ThriftyChannel(Channel):
    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._kept is None or self._kept.connection_pool is not self.pool:  # a reconnect makes a new pool
            self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept


class ThriftyTransport(Transport):
    Channel = ThriftyChannel


def use_thrifty_transport() -> None:
    """For every connection that this process makes to Redis as a broker."""
    TRANSPORT_ALIASES["redis"] = f"{__name__}:{ThriftyTransport.__name__}"
