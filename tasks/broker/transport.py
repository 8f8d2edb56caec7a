"""kombu's Redis transport with one client per channel. kombu makes a new client of redis-py for every command, which
costs more than the command; a client is only a view of a pool, so one will do. And noting that a message is being
worked on, or is done, is two commands in one packet, not a transaction of four: where only the first one gets through,
kombu finds nothing to restore, and PostgreSQL knows what is to be done.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, QoS, Transport


class ThriftyQoS(QoS):
    @contextmanager
    def pipe_or_acquire(self, pipe: Any = None, client: Any = None) -> Iterator[Any]:
        if pipe:
            yield pipe
            return
        with self.channel.conn_or_acquire(client) as kept:
            yield kept.pipeline(transaction=False)


class ThriftyChannel(Channel):
    QoS = ThriftyQoS
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
