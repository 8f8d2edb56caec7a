"""Streams while PostgreSQL is away: nobody is left without a word."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from anyio.abc import TaskGroup
from psycopg import sql
from sqlalchemy import make_url
from starlette.concurrency import run_in_threadpool

from api.app import build_context
from api.openai.online import cancel
from api.streaming.response import Ending
from tests.integration.test_streaming import Scene, play, until
from tests.world import World


@pytest.fixture
def scene(world: World) -> Iterator[Scene]:
    context = build_context(world.services.settings)
    yield Scene(world, context)
    context.database.close()
    world.services.relay.close()


@contextmanager
def postgresql_away(url: str | None) -> Iterator[None]:
    """For everybody who needs this database."""
    assert url is not None
    name = make_url(url).database
    assert name is not None
    server = make_url(url).set(database="postgres").render_as_string(hide_password=False)
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name])
        yield
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("true")))


def test_while_postgresql_is_away_a_reader_waits(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    job = scene.job()
    reader = scene.reader(job)

    async def plot(group: TaskGroup) -> None:
        # Given
        group.start_soon(reader.read)
        scene.publish(job, 0, "Hel")
        await until(lambda: reader.text == "Hel")
        # When
        with postgresql_away(scene.context.settings.database_url):
            scene.world.services.relay.announce(job.public_id)
            await until(lambda: "waiting without PostgreSQL" in caplog.text)
        scene.finish(job, "Hello wheel")
        # Then
        await until(lambda: reader.body.endswith("data: [DONE]\n\n"))
        assert reader.text == "Hello wheel"

    play(scene, plot)


def test_while_postgresql_is_away_a_stream_that_fails_says_so(scene: Scene) -> None:
    # Given a stream whose end cancels the job
    job = scene.job()

    async def cancelled() -> None:
        await run_in_threadpool(cancel, scene.context, job)

    reader = scene.reader(job, ending=Ending(cancelled, cancelled))

    async def plot(group: TaskGroup) -> None:
        group.start_soon(reader.read)
        scene.publish(job, 0, "Hel")
        await until(lambda: reader.text == "Hel")
        # When
        with postgresql_away(scene.context.settings.database_url):
            scene.world.services.relay.interrupt(job.public_id, 1)
            # Then
            await until(lambda: reader.body.endswith("data: [DONE]\n\n"))
        assert "stream_interrupted" in reader.body

    play(scene, plot)
