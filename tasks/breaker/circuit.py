"""A circuit breaker per model, in Redis, shared by all processes: workers report engines that died, the API reports how
its requests ended. After several failures in a row the circuit is open and requests are refused at once; then one is
let through as a probe, and its end closes the circuit or opens it anew. Time is the server's. Without Redis it is
closed.
"""

import logging
from dataclasses import dataclass
from enum import StrEnum

from redis import Redis
from redis.exceptions import RedisError

from core.settings import Settings

logger = logging.getLogger(__name__)

MEMORY_SECONDS = 60.0  # failures that are further apart are no series
PROBE_SECONDS = 30.0  # then another request may probe
CRASH_SECONDS = 2.0  # a device that dies takes many requests along, and is one failure

_ASK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local failures = tonumber(redis.call('HGET', KEYS[1], 'failures') or '0')
local open_until = tonumber(redis.call('HGET', KEYS[1], 'open_until') or '0')
if open_until == 0 then return {'closed', 0, failures} end
if now < open_until then return {'open', open_until - now, failures} end
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[1]) then return {'probe', 0, failures} end
return {'open', redis.call('PTTL', KEYS[2]), failures}
"""

_FAIL = """
if ARGV[4] ~= '' and not redis.call('SET', KEYS[3], '1', 'NX', 'PX', ARGV[4]) then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local failures = redis.call('HINCRBY', KEYS[1], 'failures', 1)
if failures >= tonumber(ARGV[1]) or redis.call('HEXISTS', KEYS[1], 'open_until') == 1 then
  redis.call('HSET', KEYS[1], 'open_until', now + ARGV[2])
  redis.call('DEL', KEYS[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return failures
"""


class Circuit(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class CircuitState:
    """retry_after_seconds: of an open circuit. num_failures: in a row, until now."""

    circuit: Circuit
    retry_after_seconds: float
    num_failures: int


CLOSED = CircuitState(Circuit.CLOSED, 0.0, 0)


class Breaker:
    """max_failures: in a row, after which the circuit opens.  open_seconds: until a probe is let through.
    num_failed_open: how often Redis could not be asked."""

    def __init__(self, redis: Redis, *, max_failures: int, open_seconds: float) -> None:
        self._redis = redis
        self._max_failures = max_failures
        self._open_seconds = open_seconds
        self._ask = redis.register_script(_ASK)
        self._fail = redis.register_script(_FAIL)
        self.num_failed_open = 0

    @classmethod
    def of(cls, settings: Settings, redis: Redis) -> "Breaker":
        return cls(redis, max_failures=settings.breaker_failures, open_seconds=settings.breaker_open_seconds)

    def ask(self, model: str) -> CircuitState:
        """PROBE says that the caller's request is the probe: its end must be reported."""
        try:
            circuit, retry_ms, failures = self._ask(_keys(model)[:2], [int(PROBE_SECONDS * 1000)])
        except RedisError as error:
            self._passed("asked", model, error)
            return CLOSED
        return CircuitState(Circuit(circuit.decode()), max(0, retry_ms) / 1000, failures)

    def failed(self, model: str, *, device: str | None = None) -> None:
        """`device`: the one that died, which counts once however many report it."""
        memory_seconds = max(MEMORY_SECONDS, 2 * self._open_seconds)
        crash_ms = "" if device is None else int(CRASH_SECONDS * 1000)
        arguments = [self._max_failures, int(self._open_seconds * 1000), int(memory_seconds * 1000), crash_ms]
        try:
            self._fail(_keys(model, device or ""), arguments)
        except RedisError as error:
            self._passed("told of a failure", model, error)

    def succeeded(self, model: str) -> None:
        self._forget(model, _keys(model)[:2])

    def gave_up(self, model: str) -> None:
        """The probe says nothing: its client left, or the request was wrong. Another one may probe."""
        self._forget(model, _keys(model)[1:2])

    def _forget(self, model: str, keys: list[str]) -> None:
        try:
            self._redis.delete(*keys)
        except RedisError as error:
            self._passed("told", model, error)

    def _passed(self, what: str, model: str, error: RedisError) -> None:
        self.num_failed_open += 1
        logger.warning("the breaker of %s could not be %s and lets requests through: %s", model, what, error)


def _keys(model: str, device: str = "") -> list[str]:
    """One hash tag, so that they are together in a cluster."""
    base = f"millrace:breaker:{{{model}}}"
    return [base, f"{base}:probe", f"{base}:crash:{device}"]
