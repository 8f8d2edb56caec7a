"""A worker says again and again that its device is there."""

from sqlalchemy import text

from db import models
from tests.polling import until
from tests.world import MODEL, World
from workers.presence import Presence


def is_served(world: World) -> bool:
    with world.database.begin() as session:
        return models.is_served(session, MODEL)


def test_a_device_that_was_silent_is_back_with_its_worker(world: World) -> None:
    # Given a placement that nobody has confirmed for long
    with world.database.begin() as session:
        session.execute(text("UPDATE placements SET seen_at = now() - interval '1 day'"))
    assert not is_served(world)
    # When
    presence = Presence(world.database, "node", "cpu")
    presence.start()
    # Then
    until(lambda: is_served(world))
    presence.close()


def test_another_device_is_not_confirmed_with_it(world: World) -> None:
    # Given
    with world.database.begin() as session:
        session.execute(text("UPDATE placements SET seen_at = now() - interval '1 day'"))
        # When
        models.refresh(session, node="node", device="gpu7")
    # Then
    assert not is_served(world)
