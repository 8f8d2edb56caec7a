"""The window of wake-ups: as many as chunks wait, never more than the window, whoever else refills."""

from sqlalchemy import text

from tasks import dispatcher
from tests.world import MODEL, World

QUEUE = f"batch.{MODEL}"


def test_a_refill_sends_a_wake_up_per_waiting_chunk(world: World) -> None:
    # Given
    job = world.start_job(30)
    # When
    num_sent = dispatcher.refill(world.services)
    # Then
    assert num_sent == 3
    newest = world.services.redis.lindex(QUEUE, 0)
    assert job.public_id in str(newest)


def test_the_window_bounds_what_redis_holds(world: World) -> None:
    # Given more chunks than the window
    world.start_job(200)
    window = world.services.settings.dispatch_window
    # When
    dispatcher.refill(world.services)
    dispatcher.refill(world.services)
    # Then
    assert world.services.redis.llen(QUEUE) == window


def test_a_flushed_queue_is_filled_again(world: World) -> None:
    # Given
    world.start_job(30)
    dispatcher.refill(world.services)
    world.services.redis.flushdb()
    # When / Then
    assert dispatcher.refill(world.services) == 3


def test_nothing_is_sent_for_a_model_that_nobody_serves(world: World) -> None:
    # Given
    world.start_job(30)
    with world.database.begin() as session:
        session.execute(text("DELETE FROM placements"))
    # When / Then
    assert dispatcher.refill(world.services) == 0
