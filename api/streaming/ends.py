"""Hears which online jobs ended, over one subscription of this process: what a whole answer waits for.

Nothing here is certain: whoever hears nothing asks PostgreSQL, which alone knows.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from tasks.relay import ENDS_CHANNEL, End, Heard, decode_end, decode_heard

logger = logging.getLogger(__name__)

SILENT_SECONDS = 5.0  # then the server is asked whether it is still there
RETRY_SECONDS = 1.0


class Waiter:
    """For the end of one job."""

    def __init__(self, job_public_id: str) -> None:
        self.job_public_id = job_public_id
        self._heard: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()

    @property
    def has_heard(self) -> bool:
        return self._heard.done()

    def tell(self, heard: Heard) -> None:
        if not self._heard.done():
            self._heard.set_result(heard)

    async def hear(self, seconds: float) -> End | None:
        """What came of the job; None when that was not told, or nothing was in this time."""
        await asyncio.wait([self._heard], timeout=seconds)
        if not self._heard.done():
            return None
        try:
            return decode_end(self._heard.result().end)
        except msgspec.DecodeError as error:  # too long to be told, or of another release
            logger.debug("an end without an outcome: %s", error)
            return None


class Ends:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiters: defaultdict[str, list[Waiter]] = defaultdict(list)

    @contextmanager
    def expecting(self, job_public_id: str) -> Iterator[Waiter]:
        """Begin before the job is there, and its end cannot be missed."""
        waiter = Waiter(job_public_id)
        self._waiters[job_public_id].append(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiters[job_public_id]
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[job_public_id]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Ends are heard while this lasts."""
        task = asyncio.create_task(self._listen())
        try:
            yield
        finally:
            while not task.done():  # the client may take a wish to cancel for a connection that broke
                task.cancel()
                await asyncio.wait([task], timeout=RETRY_SECONDS)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(ENDS_CHANNEL)
                    await self._hear_all(subscription)
            except RedisError as error:
                logger.warning("ends of online requests are not heard, so PostgreSQL is asked: %s", error)
            except Exception:
                logger.exception("ends of online requests are not heard, so PostgreSQL is asked")
            await asyncio.sleep(RETRY_SECONDS)

    async def _hear_all(self, subscription: PubSub) -> None:
        """Until the connection is silent for too long. Raises RedisError."""
        is_asked = False
        while True:
            message = await subscription.get_message(timeout=SILENT_SECONDS)
            if message is None and is_asked:
                logger.warning("Redis says nothing to whom it should tell ends of online requests: connecting again")
                return
            is_asked = message is None
            if message is None:
                await subscription.ping()
            elif message["type"] == "message":
                self._hear(message["data"])

    def _hear(self, data: bytes) -> None:
        try:
            told = decode_heard(data)
        except msgspec.DecodeError as error:
            logger.warning("ends that cannot be read are left out: %s", error)
            return
        for heard in told:
            for waiter in self._waiters.get(heard.job, ()):
                waiter.tell(heard)
