"""Celery's consumer, but the events of tasks gather. Celery sends them, for Flower, in every turn of its loop; those of
a quarter of a second together are as good and cost one message instead of hundreds. Named in `worker_consumer`."""

import time

from celery.worker.consumer import Consumer

GATHER_SECONDS = 0.25


class GatheringConsumer(Consumer):  # type: ignore[misc]
    _next_flush_at = 0.0

    def on_send_event_buffered(self) -> None:
        """From any thread. Remembers a time, not a flag: a broken connection takes what was planned with it."""
        now = time.monotonic()
        if self.hub and now >= self._next_flush_at:
            self._next_flush_at = now + GATHER_SECONDS
            self.hub.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self.hub.call_later(GATHER_SECONDS, self._flush_events)
