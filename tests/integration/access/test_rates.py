"""Limits a minute over the real Valkey, and what they are told as."""

import pytest
from redis import ConnectionPool

from api.access.rates import Rates, Taken, Window, headers
from core.access import Identity, Limits, Scope
from core.errors import RateLimited
from core.redis_url import client_url


@pytest.fixture
def rates(redis_url: str) -> Rates:
    return Rates(ConnectionPool.from_url(client_url(redis_url)))


def somebody(limits: Limits, *, key_id: int = 1, tenant_limits: Limits | None = None) -> Identity:
    return Identity("lab", frozenset(Scope), key_id, limits=limits, tenant_limits=tenant_limits or Limits())


def test_a_key_has_so_many_requests_a_minute(rates: Rates) -> None:
    # Given
    who = somebody(Limits(requests_per_minute=2))
    rates.take(who, 0)
    # When
    (last,) = rates.take(who, 0)
    # Then
    assert last.remaining == 0
    with pytest.raises(RateLimited, match="at most 2 requests a minute of this key") as refused:
        rates.take(who, 0)
    assert 0 < refused.value.retry_after_seconds <= 60
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    rates.take(somebody(Limits(requests_per_minute=2), key_id=2), 0)


def test_who_is_refused_has_used_nothing(rates: Rates) -> None:
    # Given
    who = somebody(Limits(requests_per_minute=9, tokens_per_minute=100))
    rates.take(who, 60)
    # When
    with pytest.raises(RateLimited, match="tokens a minute"):
        rates.take(who, 41)
    # Then
    requests, tokens = rates.take(who, 40)
    assert (requests.remaining, tokens.remaining) == (7, 0)


def test_a_request_that_is_over_the_limit_alone_is_told_so(rates: Rates) -> None:
    with pytest.raises(RateLimited, match="this request alone is over the limit"):
        rates.take(somebody(Limits(tokens_per_minute=100)), 101)


def test_an_estimate_is_corrected_when_the_answer_is_known(rates: Rates) -> None:
    # Given
    who = somebody(Limits(tokens_per_minute=100))
    taken = rates.take(who, 90)
    # When
    rates.correct(taken, 10)
    # Then
    (again,) = rates.take(who, 90)
    assert again.remaining == 0


def test_the_keys_of_a_tenant_share_its_limit(rates: Rates) -> None:
    # Given
    shared = Limits(requests_per_minute=1)
    rates.take(somebody(Limits(), key_id=1, tenant_limits=shared), 0)
    # When / Then
    with pytest.raises(RateLimited, match="of this tenant"):
        rates.take(somebody(Limits(), key_id=2, tenant_limits=shared), 0)


def test_without_redis_nobody_is_refused_and_that_is_counted() -> None:
    # Given
    rates = Rates(ConnectionPool.from_url("redis://127.0.0.1:1/0"))
    # When
    taken = rates.take(somebody(Limits(requests_per_minute=1)), 0)
    rates.correct([Taken(Window("tokens", "this key", "key:1", 5, 5), 0, 0.0)], 3)
    # Then
    assert taken == []
    assert rates.num_failed_open == 1


def test_without_limits_redis_is_not_even_asked() -> None:
    # Given
    rates = Rates(ConnectionPool.from_url("redis://127.0.0.1:1/0"))
    # When
    taken = rates.take(somebody(Limits()), 10)
    # Then
    assert (taken, rates.num_failed_open) == ([], 0)


def test_the_tightest_counter_is_told_as_openai_does() -> None:
    # Given
    wide = Taken(Window("requests", "this tenant", "tenant:lab", 100, 1), 50, 1030.0)
    tight = Taken(Window("requests", "this key", "key:1", 10, 1), 3, 1012.0)
    tokens = Taken(Window("tokens", "this key", "key:1", 1000, 10), 900, 1012.0)
    # When
    told = headers([wide, tight, tokens], now=1000.0)
    # Then
    assert told == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "12s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "900",
        "x-ratelimit-reset-tokens": "12s",
    }
