"""Keeps a small window of messages per model in Redis, refilled as chunks finish; what waits beyond it waits in
PostgreSQL.

A message is a wake-up whose chunk is a hint: the worker that takes it claims the best waiting chunk. So one too many is
a no-op, and a lost one is replaced by the next refill, which counts what the queue holds.
"""

from redis.exceptions import RedisError

from core.errors import Unavailable
from db import chunks
from tasks.queues import inference_queue
from tasks.services import Services


def refill(services: Services) -> int:
    """Sends wake-ups until each queue holds one for every waiting chunk, up to the window. Returns how many were sent.
    Raises Unavailable when PostgreSQL or Redis is away."""
    with services.database.begin() as session:
        waiting = chunks.backlog(session, window=services.settings.dispatch_window)
    num_sent = 0
    for backlog in waiting:
        depth = queue_depth(services, inference_queue(backlog.service_class, backlog.model))
        for name in backlog.names[depth:]:
            services.messages.wake_up(backlog.service_class, backlog.model, name)
            num_sent += 1
    return num_sent


def queue_depth(services: Services, queue: str) -> int:
    """Messages that no worker has taken. Raises Unavailable."""
    try:
        return services.redis.llen(queue)
    except RedisError as error:
        raise Unavailable(f"Redis is away: {error}; it will be tried again") from error
