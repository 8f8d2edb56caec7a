"""Who used how much. Exact under crashes, because every outcome is written once: the statement that appends outcomes
(`db.chunks.writing`) also writes what the rows that it really inserted used, in the same transaction, as an entry of
its own, for which nobody waits. Entries are moved into days by a statement that deletes what it adds. Reading adds
both.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from core.protocol import Spent

GROUPS = ("tenant", "key", "model", "day")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """None is all. `key`: the public id of a key; days are inclusive."""

    tenant: str | None
    model: str | None = None
    key: str | None = None
    first_day: date | None = None
    last_day: date | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one group; what it is not grouped by is None. key: the public id of a key."""

    tenant: str | None
    key: str | None
    model: str | None
    day: date | None
    num_requests: int
    num_failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    device_seconds: float


@dataclass(slots=True)
class Used:
    """By requests that ended without an outcome, or are none of inference."""

    num_requests: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    device_seconds: float = 0.0

    def add_request(self, spent: Spent | None) -> None:
        """None is one that had not begun."""
        if spent is not None:
            self.num_requests += 1
            self.add(spent)

    def add(self, spent: Spent) -> None:
        self.prompt_tokens += spent.prompt_tokens
        self.cached_tokens += spent.cached_tokens
        self.completion_tokens += spent.completion_tokens
        self.device_seconds += spent.device_seconds


_NOTE = text("""
INSERT INTO usage_entries (tenant, key_id, model, service_class, num_requests, num_failed, prompt_tokens, cached_tokens,
    completion_tokens, device_seconds)
SELECT tenant, coalesce(key_id, 0), model, service_class, :num_requests, :num_failed, :prompt_tokens, :cached_tokens,
    :completion_tokens, :device_seconds
FROM jobs WHERE id = :job_id AND model IS NOT NULL
""")

_SUMS = """sum(num_requests) AS num_requests, sum(num_failed) AS num_failed, sum(prompt_tokens) AS prompt_tokens,
    sum(cached_tokens) AS cached_tokens, sum(completion_tokens) AS completion_tokens,
    sum(device_seconds) AS device_seconds"""

_FOLD = text(f"""
WITH taken AS (
    DELETE FROM usage_entries WHERE id IN (
        SELECT id FROM usage_entries WHERE at < clock_timestamp() - CAST(:older_than AS interval)
          AND EXISTS (SELECT FROM (SELECT at FROM usage_entries ORDER BY id LIMIT 1) AS oldest
              WHERE at < clock_timestamp() - 2 * CAST(:older_than AS interval))
        ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING *
), folded AS (
    INSERT INTO usage_days AS d (tenant, day, key_id, model, num_requests, num_failed, prompt_tokens, cached_tokens,
        completion_tokens, device_seconds)
    SELECT tenant, CAST(at AT TIME ZONE 'UTC' AS date) AS day, key_id, model, {_SUMS}
    FROM taken GROUP BY tenant, day, key_id, model ORDER BY tenant, day, key_id, model
    ON CONFLICT (tenant, day, key_id, model) DO UPDATE SET
        num_requests = d.num_requests + excluded.num_requests, num_failed = d.num_failed + excluded.num_failed,
        prompt_tokens = d.prompt_tokens + excluded.prompt_tokens,
        cached_tokens = d.cached_tokens + excluded.cached_tokens,
        completion_tokens = d.completion_tokens + excluded.completion_tokens,
        device_seconds = d.device_seconds + excluded.device_seconds
)
SELECT count(*) FROM taken
""")  # noqa: S608  # made of constants

_READ = f"""
SELECT {{groups}}, {_SUMS} FROM (
    SELECT tenant, day, key_id, model, num_requests, num_failed, prompt_tokens, cached_tokens, completion_tokens,
        device_seconds FROM usage_days
    UNION ALL
    SELECT tenant, CAST(at AT TIME ZONE 'UTC' AS date), key_id, model, num_requests, num_failed, prompt_tokens,
        cached_tokens, completion_tokens, device_seconds FROM usage_entries
) AS used
WHERE (CAST(:tenant AS text) IS NULL OR tenant = :tenant) AND (CAST(:model AS text) IS NULL OR model = :model)
  AND (CAST(:first_day AS date) IS NULL OR day >= :first_day)
  AND (CAST(:last_day AS date) IS NULL OR day <= :last_day)
  AND (CAST(:key AS text) IS NULL OR key_id = (SELECT id FROM api_keys WHERE public_id = :key))
GROUP BY 1, 2, 3, 4 ORDER BY 4, 1, 2, 3 LIMIT :limit
"""  # noqa: S608  # made of constants

_COLUMNS = {
    "tenant": "tenant",
    "key": "(SELECT public_id FROM api_keys WHERE api_keys.id = used.key_id)",
    "model": "model",
    "day": "day",
}
_TYPES = {"tenant": "text", "key": "text", "model": "text", "day": "date"}


def note(session: Session, job_id: int, used: Used) -> None:
    """For what has no outcome that would tell it: in the transaction that gives its chunk back or ends its job, so that
    it counts once."""
    values = asdict(used)
    if any(values.values()):
        session.execute(_NOTE, {"job_id": job_id, **values})


def fold(session: Session, *, limit: int, older_than: timedelta = timedelta()) -> int:
    """Moves at most `limit` entries into their days and returns how many they were: once the oldest one has twice the
    age, so that they are looked through now and then, not at every call. Two that fold at once take different ones."""
    return int(session.execute(_FOLD, {"limit": limit, "older_than": older_than}).scalar_one())


def read(session: Session, wanted: UsageFilter, *, group_by: Sequence[str], limit: int) -> list[Usage]:
    """Sums by any of GROUPS, in order of days."""
    groups = [
        f"{_COLUMNS[name] if name in group_by else f'CAST(NULL AS {_TYPES[name]})'} AS {name}_group" for name in GROUPS
    ]
    statement = text(_READ.format(groups=", ".join(groups)))
    values = {
        "tenant": wanted.tenant,
        "model": wanted.model,
        "key": wanted.key,
        "first_day": wanted.first_day,
        "last_day": wanted.last_day,
        "limit": limit,
    }
    return [_usage(row) for row in session.execute(statement, values)]


def _usage(row: Any) -> Usage:
    tenant, key, model, day, *numbers, device_seconds = row
    requests, failed, prompt, cached, completion = map(int, numbers)
    return Usage(tenant, key, model, day, requests, failed, prompt, cached, completion, round(float(device_seconds), 3))
