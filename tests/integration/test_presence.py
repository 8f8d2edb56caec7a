"""A worker says again and again that its device is there."""

from collections.abc import Iterator

from sqlalchemy import text

from core.protocol import EMBEDDER, GENERATOR
from db import models
from tests.polling import until
from tests.world import MODEL, World
from workers.presence import Presence


def is_served(world: World) -> bool:
    with world.database.begin() as session:
        return models.find_served(session, MODEL) is not None


def test_a_device_that_was_silent_is_back_with_its_worker(world: World) -> None:
    # Given a placement that nobody has confirmed for long
    with world.database.begin() as session:
        session.execute(text("UPDATE placements SET seen_at = now() - interval '1 day'"))
    assert not is_served(world)
    # When
    presence = Presence(world.database, "node", "cpu", lambda: {MODEL: GENERATOR})
    presence.start()
    # Then
    until(lambda: is_served(world))
    presence.close()
    with world.database.begin() as session:
        assert [row.kind for row in models.list_served(session)] == [GENERATOR]


def test_what_a_model_is_becomes_known_as_soon_as_its_engine_says_it(world: World) -> None:
    # Given an engine that is not there yet when its worker starts
    answers: Iterator[dict[str, str]] = iter([{}, {}])
    presence = Presence(world.database, "node", "cpu", lambda: next(answers, {MODEL: EMBEDDER}), hurry_seconds=0.01)
    # When
    presence.start()

    # Then
    def kinds() -> list[str | None]:
        with world.database.begin() as session:
            return [row.kind for row in models.list_served(session)]

    until(lambda: kinds() == [EMBEDDER])
    presence.close()


def test_another_device_is_not_confirmed_with_it(world: World) -> None:
    # Given
    with world.database.begin() as session:
        session.execute(text("UPDATE placements SET seen_at = now() - interval '1 day'"))
        # When
        models.refresh(session, node="node", device="gpu7")
    # Then
    assert not is_served(world)
