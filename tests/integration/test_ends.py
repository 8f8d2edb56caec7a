"""Ends of online jobs over a real Valkey: heard by who expects them, lost without harm, and heard again afterwards."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api.streaming.ends import Ends
from core.redis_url import client_url
from db.chunks import Outcome
from tasks.relay import ENDS_CHANNEL, MAX_END_CHARACTERS, End, RedisRelay, answer_stream
from tests.polling import DEADLINE_SECONDS

SHORT = End(1, [Outcome(0, 200, '{"answer": "x"}', completion_tokens=1)])


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(client_url(redis_url))


def listening(redis: Redis, redis_url: str, plot: Callable[[Ends], Awaitable[None]]) -> None:
    """Plays the plot while ends are heard."""

    async def play() -> None:
        client: AsyncRedis = AsyncRedis.from_url(client_url(redis_url))
        try:
            with anyio.fail_after(DEADLINE_SECONDS):
                ends = Ends(client)
                async with ends.listening():
                    await subscribed(redis)
                    await plot(ends)
        finally:
            await client.aclose()

    anyio.run(play)


async def subscribed(redis: Redis) -> None:
    while redis.pubsub_numsub(ENDS_CHANNEL)[0][1] == 0:
        await anyio.sleep(0.01)


def test_everybody_who_expects_an_end_hears_it_and_nobody_else(redis: Redis, redis_url: str) -> None:
    # Given
    relay = RedisRelay(redis)

    async def plot(ends: Ends) -> None:
        with ends.expecting("req_1") as one, ends.expecting("req_1") as two, ends.expecting("req_2") as other:
            # When
            relay.announce("req_1", SHORT, is_streamed=False)
            # Then
            assert await one.hear(DEADLINE_SECONDS) == SHORT
            assert await two.hear(DEADLINE_SECONDS) == SHORT
            assert not other.has_heard
            assert await other.hear(0.01) is None
        assert redis.exists(answer_stream("req_1")) == 0

    listening(redis, redis_url, plot)
    relay.close()


def test_of_a_long_answer_only_the_end_is_heard(redis: Redis, redis_url: str) -> None:
    # Given
    relay = RedisRelay(redis)
    long = End(1, [Outcome(0, 200, "x" * (MAX_END_CHARACTERS + 1))])

    async def plot(ends: Ends) -> None:
        with ends.expecting("req_1") as waiter:
            # When
            relay.announce("req_1", long)
            # Then
            assert await waiter.hear(DEADLINE_SECONDS) is None
            assert waiter.has_heard
        assert redis.exists(answer_stream("req_1")) == 1  # for those who read along

    listening(redis, redis_url, plot)
    relay.close()


def test_what_cannot_be_read_and_a_lost_connection_silence_nothing_that_comes_later(
    redis: Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given
    relay = RedisRelay(redis)

    async def plot(ends: Ends) -> None:
        redis.publish(ENDS_CHANNEL, b"{")
        redis.client_kill_filter(_type="pubsub")
        await subscribed(redis)
        with ends.expecting("req_1") as waiter:
            # When
            relay.announce("req_1", SHORT, is_streamed=False)
            # Then
            assert await waiter.hear(DEADLINE_SECONDS) == SHORT

    listening(redis, redis_url, plot)
    relay.close()
    assert "cannot be read" in caplog.text


def test_a_subscription_may_be_ended_at_any_moment(redis_url: str) -> None:
    async def play() -> None:
        client: AsyncRedis = AsyncRedis.from_url(client_url(redis_url))
        with anyio.fail_after(DEADLINE_SECONDS):
            for num_steps in range(30):
                async with Ends(client).listening():
                    for _ in range(num_steps):
                        await anyio.sleep(0)
        await client.aclose()

    anyio.run(play)
