"""The relay over a real Valkey: what is told arrives in order, is bounded, and disappears by itself."""

import pytest
from redis import Redis

from core.protocol import TokenLogprob
from core.redis_url import client_url
from db.chunks import Outcome
from tasks.relay import (
    MAX_END_CHARACTERS,
    MAX_GATHERED,
    STREAM_ENTRIES,
    End,
    Piece,
    RedisRelay,
    answer_stream,
    decode_end,
    decode_pieces,
)
from tests.polling import until

JOB = "req_1"


def piece(offset: int, text: str = "x", **named: object) -> Piece:
    return Piece(1, 0, 0, offset, text, offset + 1, **named)  # type: ignore[arg-type]


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(client_url(redis_url))


def entries(redis: Redis) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in redis.xrange(answer_stream(JOB))]  # type: ignore[union-attr, misc]


def test_pieces_arrive_whole_and_in_order_and_then_the_interruption(redis: Redis) -> None:
    # Given
    relay = RedisRelay(redis)
    logprob = TokenLogprob("a", b"a\xff", -1.5)
    told = [piece(0, prompt_tokens=3), piece(1, logprobs=[logprob]), piece(2)]
    # When
    for one in told:
        relay.publish(JOB, one)
    relay.interrupt(JOB, 1)
    relay.close()
    # Then
    found = entries(redis)
    assert [one for fields in found[:-1] for one in decode_pieces(fields[b"pieces"])] == told
    assert found[-1] == {b"event": b"interrupted", b"attempt": b"1"}
    assert 0 < redis.ttl(answer_stream(JOB)) <= 600


def test_a_short_end_is_told_with_the_outcome_and_a_long_one_without(redis: Redis) -> None:
    # Given
    relay = RedisRelay(redis)
    short = End(2, [Outcome(0, 200, '{"answer": "x"}', completion_tokens=1)])
    long = End(2, [Outcome(0, 200, "x" * (MAX_END_CHARACTERS + 1))])
    # When
    relay.announce(JOB, short)
    relay.announce(JOB, long)
    relay.close()
    # Then
    first, second = entries(redis)
    assert decode_end(first[b"end"]) == short
    assert second == {b"event": b"done", b"attempt": b"0"}


def test_an_end_follows_what_was_told_before_it(redis: Redis) -> None:
    # Given
    relay = RedisRelay(redis)
    # When
    for offset in range(50):
        relay.publish(JOB, piece(offset))
    relay.interrupt(JOB, 1)
    relay.announce(JOB)
    relay.close()
    # Then
    *pieces, interruption, end = entries(redis)
    assert [one.offset for fields in pieces for one in decode_pieces(fields[b"pieces"])] == list(range(50))
    assert (interruption[b"event"], end[b"event"]) == (b"interrupted", b"done")
    assert 0 < redis.ttl(answer_stream(JOB)) <= 60


def test_what_cannot_be_told_ends_nothing_else(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    # Given
    relay = RedisRelay(redis)
    # When
    relay.publish(JOB, piece(0, "\ud800"))  # half of a character, which no encoding knows
    until(lambda: "could not be told" in caplog.text)
    relay.publish(JOB, piece(1))
    relay.announce(JOB)
    relay.close()
    # Then
    *pieces, end = entries(redis)
    assert [one.offset for fields in pieces for one in decode_pieces(fields[b"pieces"])] == [1]
    assert end[b"event"] == b"done"


def test_the_first_piece_goes_out_without_waiting_for_the_next(redis: Redis) -> None:
    relay = RedisRelay(redis)
    relay.publish(JOB, piece(0))
    until(lambda: len(entries(redis)) == 1)
    relay.close()


def test_a_stream_is_bounded_however_long_the_answer(redis: Redis) -> None:
    # Given
    relay = RedisRelay(redis)
    # When
    with redis.pipeline(transaction=False) as pipeline:
        for _ in range(3 * STREAM_ENTRIES):
            pipeline.xadd(answer_stream(JOB), {"event": "filler"})
        pipeline.execute()
    relay.announce(JOB)
    relay.close()
    # Then
    assert len(entries(redis)) < 1.2 * STREAM_ENTRIES


def test_nobody_waits_for_a_redis_that_is_away() -> None:
    # Given
    relay = RedisRelay(Redis.from_url("redis://127.0.0.1:1/0"))
    # When more is published than is kept
    for number in range(2 * MAX_GATHERED):
        relay.publish(JOB, piece(number))
    # Then it comes back, and so do these
    relay.announce(JOB)
    relay.close()
