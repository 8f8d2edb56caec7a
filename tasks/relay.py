"""Tells the API that an online answer is committed, through a Redis stream per job that expires by itself.

The stream only wakes the waiter, who reads the answer from PostgreSQL: losing it costs a moment, never an answer.
"""

import logging

from redis import Redis
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

STREAM_LIFETIME_SECONDS = 60


def answer_stream(job_public_id: str) -> str:
    return f"millrace:answer:{job_public_id}"


class RedisRelay:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def announce(self, job_public_id: str) -> None:
        """Fails open: without Redis the waiter finds the answer at its next look into PostgreSQL."""
        stream = answer_stream(job_public_id)
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.xadd(stream, {"event": "done"}, maxlen=16)
                pipeline.expire(stream, STREAM_LIFETIME_SECONDS)
                pipeline.execute()
        except RedisError as error:
            logger.warning("job %s is done, but nobody could be told: %s", job_public_id, error)
