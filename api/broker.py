"""Whether the broker is there, and waking workers through it.

A request is refused before it is committed while the broker is known to be away. Once it is committed nothing can fail
it: a message that could not be sent is sent again by the dispatcher.
"""

import logging
import time
from collections.abc import Callable

from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from core.errors import Unavailable
from core.job import ServiceClass
from db.jobs import Progress
from db.tables import JobRow
from tasks.messages import Messages

logger = logging.getLogger(__name__)

TRUST_SECONDS = 1.0
RETRY_SECONDS = 2.0


class Broker:
    def __init__(self, redis: AsyncRedis, messages: Messages, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._messages = messages
        self._clock = clock
        self._seen_at = float("-inf")

    async def check(self) -> None:
        """Raises Unavailable while it is away; asks once a second at most while it is there."""
        if self._clock() - self._seen_at < TRUST_SECONDS:
            return
        try:
            await self._redis.ping()
        except RedisError as error:
            raise Unavailable(
                f"Redis is away, so nobody would run the request: {error}; send it again in a moment",
                retry_after_seconds=RETRY_SECONDS,
            ) from error
        self._seen_at = self._clock()

    def wake_up(self, job: JobRow) -> None:
        """For an online job that is committed. Called from a thread, as the broker may take its time."""
        model, chunk = job.model or "", f"{job.public_id}#0"
        wait = f"job {job.public_id} waits for the dispatcher"
        self._send(lambda: self._messages.wake_up(ServiceClass.ONLINE, model, chunk), wait)

    def end_if_idle(self, job: JobRow, progress: Progress | None) -> None:
        """For a job that was stopped: where no worker has it any more, the upkeep worker ends it. Called from a
        thread."""
        if progress is not None and progress.num_busy_chunks:
            return
        self._send(lambda: self._messages.finalize_job(job.public_id), f"job {job.public_id} waits for the reconciler")

    def remove_artifacts(self, node: str) -> None:
        """For artifacts of this node that were deleted: it takes their directories away. Called from a thread."""
        self._send(lambda: self._messages.remove_artifacts(node), f"artifacts of {node} wait for the next retention")

    def _send(self, send: Callable[[], None], wait: str) -> None:
        """wait: what happens where the message cannot be sent."""
        try:
            send()
        except Unavailable as error:
            self._seen_at = float("-inf")
            logger.warning("%s: %s", wait, error)
