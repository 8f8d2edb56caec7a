from collections.abc import Callable

from tasks.broker.consumer import GATHER_SECONDS, GatheringConsumer


class Hub:
    """Runs what is called soon at once, and remembers what is called later."""

    def __init__(self) -> None:
        self.later: list[float] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        callback()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.later.append(seconds)


def test_events_that_follow_each_other_are_sent_together() -> None:
    # Given
    consumer = object.__new__(GatheringConsumer)
    consumer.hub = Hub()
    # When
    for _ in range(100):
        consumer.on_send_event_buffered()
    # Then
    assert consumer.hub.later == [GATHER_SECONDS]


def test_what_was_planned_before_the_connection_broke_is_planned_anew() -> None:
    # Given
    consumer = object.__new__(GatheringConsumer)
    consumer.hub = Hub()
    consumer.on_send_event_buffered()
    consumer.hub = Hub()  # empty: the broken connection took its timers along
    consumer._next_flush_at -= GATHER_SECONDS
    # When
    consumer.on_send_event_buffered()
    # Then
    assert consumer.hub.later == [GATHER_SECONDS]
