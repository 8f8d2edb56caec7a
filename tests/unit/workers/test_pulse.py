from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from workers.pulse import STANDSTILL_SECONDS, Pulse


class Broker:
    """What a pulse asks of Redis."""

    is_away = False

    def ping(self) -> bool:
        if self.is_away:
            raise RedisConnectionError("gone")
        return True


class Scene:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 1000.0
        self.turned_at = 1000.0
        self.broker = Broker()
        self.pulse = Pulse(path, self.broker, lambda: self.turned_at, lambda: self.now)  # type: ignore[arg-type]

    def beats(self) -> bool:
        self.path.unlink(missing_ok=True)
        self.pulse.beat()
        return self.path.exists()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "pulse")


def test_a_loop_that_turns_gives_a_sign_of_life(scene: Scene) -> None:
    scene.now += STANDSTILL_SECONDS - 1
    assert scene.beats()


def test_a_loop_that_stands_still_though_the_broker_is_there_gives_none(scene: Scene) -> None:
    scene.now += STANDSTILL_SECONDS
    assert not scene.beats()


def test_a_broker_that_is_away_is_nobodys_fault_and_there_is_time_to_find_it_again(scene: Scene) -> None:
    # Given a broker that is away for an hour
    scene.broker.is_away = True
    scene.now += 3600
    assert scene.beats()
    # When it is back, the loop may take its time, but not for ever
    scene.broker.is_away = False
    scene.now += STANDSTILL_SECONDS - 1
    assert scene.beats()
    scene.now += 1
    assert not scene.beats()
    # And turns again
    scene.turned_at = scene.now
    assert scene.beats()
