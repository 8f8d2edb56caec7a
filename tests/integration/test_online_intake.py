"""Online requests that come at the same moment are committed together, and each for itself where one cannot be."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import anyio
import pytest
from sqlalchemy import text

from api.broker import Broker
from api.openai.intake import MAX_TOGETHER, REQUESTS_PER_MESSAGE, Intake
from core.errors import InvalidRequest, Unavailable
from core.openai.completion import CHAT_ENDPOINT
from db.connection import Database
from db.jobs import NewOnlineRequest
from tasks.queues import inference_queue
from tests.polling import DEADLINE_SECONDS
from tests.world import MODEL, World


def asked(body: str, tenant: str = "default") -> NewOnlineRequest:
    return NewOnlineRequest(
        endpoint=CHAT_ENDPOINT, model=MODEL, body=body, expires_after=timedelta(minutes=5), tenant=tenant
    )


@contextmanager
def opened(world: World, database: Database | None = None) -> Iterator[Intake]:
    broker = Broker(None, world.services.messages)  # type: ignore[arg-type]
    intake = Intake(database or world.database, broker)
    intake.start()
    try:
        yield intake
    finally:
        intake.close()


def play(plot: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        with anyio.fail_after(DEADLINE_SECONDS):
            await plot()

    anyio.run(in_time)


def test_requests_that_come_together_are_committed_and_announced_together(world: World) -> None:
    # Given somebody who keeps the intake waiting
    bodies = [f'{{"number": {number}}}' for number in range(20)]
    made: dict[str, str] = {}

    async def plot() -> None:
        async def put(body: str) -> None:
            job = await intake.put(asked(body))
            made[job.public_id] = body

        async with anyio.create_task_group() as group:
            with world.database.begin() as session:
                session.execute(text("LOCK TABLE jobs IN EXCLUSIVE MODE"))
                for body in bodies:
                    group.start_soon(put, body)
                    await anyio.sleep(0)

    # When
    with opened(world) as intake:
        play(plot)
    # Then
    with world.database.begin() as session:
        stored = session.execute(
            text(
                "SELECT public_id, body, chunks.state FROM jobs JOIN requests ON job_id = id JOIN chunks USING (job_id)"
            )
        ).all()
        num_transactions = session.execute(text("SELECT count(DISTINCT xmin::text) FROM jobs")).scalar_one()
    assert {row[0]: row[1] for row in stored} == made
    assert sorted(made.values()) == sorted(bodies)
    assert {row[2] for row in stored} == {"waiting"}
    assert num_transactions < len(bodies) <= MAX_TOGETHER
    num_messages = world.services.redis.llen(inference_queue("online", MODEL))
    assert len(bodies) / REQUESTS_PER_MESSAGE <= num_messages < len(bodies)


def test_one_that_cannot_be_stored_takes_nobody_along(world: World) -> None:
    # Given
    refused: list[InvalidRequest] = []

    async def plot() -> None:
        async def put(tenant: str) -> None:
            try:
                await intake.put(asked("{}", tenant))
            except InvalidRequest as error:
                refused.append(error)

        async with anyio.create_task_group() as group:
            with world.database.begin() as session:
                session.execute(text("LOCK TABLE jobs IN EXCLUSIVE MODE"))
                for tenant in ("first", "second", "thi\x00rd", "fourth"):
                    group.start_soon(put, tenant)
                    await anyio.sleep(0)

    # When
    with opened(world) as intake:
        play(plot)
    # Then
    with world.database.begin() as session:
        tenants = set(session.scalars(text("SELECT tenant FROM jobs")))
    assert tenants == {"first", "second", "fourth"}
    assert len(refused) == 1


def test_whoever_asks_without_a_database_is_told_and_the_next_is_served(world: World) -> None:
    # Given
    away = Database("postgresql://nobody@127.0.0.1:1/nowhere")

    async def plot() -> None:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await intake.put(asked("{}"))

    # When / Then
    with opened(world, away) as intake:
        play(plot)
    away.close()
