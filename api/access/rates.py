"""How many requests and tokens a minute: counters of the `limits` library in Redis, one per key and one per tenant, in
windows that begin with the first request. Tokens are taken by an estimate and corrected when the answer is known.
Without Redis nobody is refused.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis import ConnectionPool
from redis.exceptions import RedisError

from core.access import Identity, Limits
from core.errors import RateLimited

logger = logging.getLogger(__name__)

SAME_WINDOW_SECONDS = 1.5  # the storage tells ends of windows in whole seconds
PREFIX = "millrace:rates"


@dataclass(frozen=True, slots=True)
class Window:
    """A counter and what a request takes from it. `kind`: `requests` or `tokens`.  `whose`: for messages."""

    kind: str
    whose: str
    owner: str
    amount: int
    cost: int

    @property
    def item(self) -> RateLimitItemPerMinute:
        return RateLimitItemPerMinute(self.amount, namespace=self.kind)


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken, from a window that ends at `reset_at` (seconds since 1970)."""

    window: Window
    remaining: int
    reset_at: float


class Rates:
    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._storage = RedisStorage("redis://", connection_pool=pool, key_prefix=PREFIX)
        self._limiter = FixedWindowRateLimiter(self._storage)
        self.num_failed_open = 0

    def close(self) -> None:
        self._pool.disconnect()

    def take(self, identity: Identity, num_tokens: int, *, num_requests: int = 1) -> list[Taken]:
        """Raises RateLimited, and then has taken nothing."""
        taken: list[Taken] = []
        try:
            for window in windows(identity, num_tokens, num_requests):
                one = self._take(window)
                if one.remaining < 0:
                    self._give_back([*taken, one])
                    raise refused(one, time.time())
                taken.append(one)
        except RedisError as error:
            self.num_failed_open += 1
            logger.warning("limits are not enforced: Redis is away: %s", error, extra={"event": "rates.failed_open"})
        return taken

    def _take(self, window: Window) -> Taken:
        key = window.item.key_for(window.owner)
        used = self._storage.incr(key, window.item.get_expiry(), amount=window.cost)
        return Taken(window, window.amount - used, self._storage.get_expiry(key))

    def correct(self, taken: list[Taken], num_tokens: int) -> None:
        """Replaces the estimate by what the answer really took, in windows that still run."""
        try:
            for one in taken:
                if one.window.kind == "tokens":
                    self._add(one, num_tokens - one.window.cost)
        except RedisError as error:
            logger.warning("limits keep an estimate: Redis is away: %s", error)

    def _give_back(self, taken: list[Taken]) -> None:
        for one in taken:
            self._add(one, -one.window.cost)

    def _add(self, one: Taken, amount: int) -> None:
        key = one.window.item.key_for(one.window.owner)
        is_same = abs(self._storage.get_expiry(key) - one.reset_at) < SAME_WINDOW_SECONDS
        if amount and is_same and self._storage.get(key):
            self._storage.incr(key, one.window.item.get_expiry(), amount=amount)


def windows(identity: Identity, num_tokens: int, num_requests: int) -> Iterator[Window]:
    """Of the key and of its tenant, where they are limited."""
    owners: list[tuple[str, str, Limits]] = [("this tenant", f"tenant:{identity.tenant}", identity.tenant_limits)]
    if identity.key_id is not None:
        owners.insert(0, ("this key", f"key:{identity.key_id}", identity.limits))
    for whose, owner, limits in owners:
        if limits.requests_per_minute is not None and num_requests:
            yield Window("requests", whose, owner, limits.requests_per_minute, num_requests)
        if limits.tokens_per_minute is not None and num_tokens:
            yield Window("tokens", whose, owner, limits.tokens_per_minute, num_tokens)


def refused(one: Taken, now: float) -> RateLimited:
    window = one.window
    seconds = max(1.0, one.reset_at - now)
    if window.cost > window.amount:
        advice = "this request alone is over the limit: ask for fewer tokens (`max_tokens`)"
    else:
        advice = f"try again in {seconds:.0f} s"
    return RateLimited(
        f"expected at most {window.amount:,} {window.kind} a minute of {window.whose}, got {window.cost:,} more than "
        f"the {max(0, one.remaining + window.cost):,} that are left; {advice}",
        retry_after_seconds=seconds,
        headers=headers([one], now),
    )


def headers(taken: list[Taken], now: float) -> Mapping[str, str]:
    """OpenAI's `x-ratelimit-…`: of the counter with the least left, for requests and for tokens."""
    found: dict[str, str] = {}
    for kind in ("requests", "tokens"):
        of_kind = [one for one in taken if one.window.kind == kind]
        if of_kind:
            tightest = min(of_kind, key=lambda one: one.remaining)
            found[f"x-ratelimit-limit-{kind}"] = str(tightest.window.amount)
            found[f"x-ratelimit-remaining-{kind}"] = str(max(0, tightest.remaining))
            found[f"x-ratelimit-reset-{kind}"] = f"{max(0.0, tightest.reset_at - now):.0f}s"
    return found
