"""Keys that were seen lately, so that no request pays more than one look-up and most pay none. Whatever changes about a
key takes effect within FRESH_SECONDS, in every process.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from core.access import Identity, hash_key
from db.access import keys
from db.connection import Database

FRESH_SECONDS = 3.0
MAX_HELD = 10_000  # guesses are held too; when there are so many, all are forgotten


@dataclass(frozen=True, slots=True)
class _Held:
    identity: Identity | None
    read_at: float


class KeyRing:
    """`clock`: monotonic seconds."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._held: dict[bytes, _Held] = {}

    async def find(self, key: str) -> Identity | None:
        """None for a key that is unknown, expired or revoked. Raises Unavailable."""
        digest = hash_key(key)
        held = self._held.get(digest)
        if held is not None and self._clock() - held.read_at < FRESH_SECONDS:
            return held.identity
        read_at = self._clock()
        identity = await run_in_threadpool(self._read, digest)
        if len(self._held) >= MAX_HELD:
            self._held.clear()
        self._held[digest] = _Held(identity, read_at)
        return identity

    def forget(self) -> None:
        """Of this process: a key that was revoked here opens nothing from now on."""
        self._held.clear()

    def _read(self, digest: bytes) -> Identity | None:
        with self._database.begin() as session:
            identity = keys.identify(session, digest)
            if identity is not None and identity.key_id is not None:
                keys.touch(session, identity.key_id)
        return identity
