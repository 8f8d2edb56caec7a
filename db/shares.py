"""The books of fair shares: which tenants wait for a model at a priority, and how many answer tokens each was given.

A tenant that comes back after a pause starts at the virtual time of those that stayed, so that nobody saves up.
`db.chunks.claiming` charges what a chunk asks for at most; `settle` makes it what the chunk really took, at the
priority at which it was charged.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

_ARRIVE = text("""
INSERT INTO tenant_shares AS share (service_class, model, priority, tenant, used_tokens)
SELECT :service_class, :model, :priority, :tenant, coalesce(max(started_tokens), 0) FROM tenant_shares
WHERE service_class = :service_class AND model = :model AND priority = :priority
ON CONFLICT (service_class, model, priority, tenant) DO UPDATE
SET used_tokens = greatest(share.used_tokens, excluded.used_tokens), used_at = clock_timestamp()
WHERE NOT EXISTS (
    SELECT FROM chunks WHERE state = 'waiting' AND service_class = :service_class AND model = :model
      AND priority = :priority AND tenant = :tenant)
""")

# In the order of their keys, as two may settle several at once. What others that still run were charged is in
# `started_tokens` too, which was noted between: the virtual time goes back with what was not taken.
_SETTLE = text("""
WITH due AS (
    SELECT service_class, model, coalesce(charged_priority, priority) AS priority, tenant,
        sum(completion_tokens + num_failed - cost_tokens) AS tokens
    FROM chunks WHERE id = ANY(:chunk_ids) GROUP BY 1, 2, 3, 4
), held AS (
    SELECT service_class, model, priority, tenant, due.tokens
    FROM tenant_shares AS share JOIN due USING (service_class, model, priority, tenant)
    ORDER BY 1, 2, 3, 4 FOR NO KEY UPDATE OF share
)
UPDATE tenant_shares AS share SET used_tokens = greatest(0, share.used_tokens + held.tokens),
    started_tokens = least(share.started_tokens, greatest(0, share.used_tokens + held.tokens))
FROM held
WHERE share.service_class = held.service_class AND share.model = held.model AND share.priority = held.priority
  AND share.tenant = held.tenant
""")

# The release before this one cuts chunks without asking for a share. One step of the index per share, not per chunk.
_RESTORE = text("""
WITH RECURSIVE waiting AS (
    (SELECT model, priority, tenant FROM chunks
     WHERE state = 'waiting' AND available_at IS NULL AND service_class = 'batch'
     ORDER BY model, priority, tenant LIMIT 1)
    UNION ALL
    SELECT following.* FROM waiting CROSS JOIN LATERAL (
        SELECT c.model, c.priority, c.tenant FROM chunks AS c
        WHERE c.state = 'waiting' AND c.available_at IS NULL AND c.service_class = 'batch'
          AND (c.model, c.priority, c.tenant) > (waiting.model, waiting.priority, waiting.tenant)
        ORDER BY c.model, c.priority, c.tenant LIMIT 1) AS following
)
INSERT INTO tenant_shares (service_class, model, priority, tenant, used_tokens)
SELECT 'batch', waiting.model, waiting.priority, waiting.tenant, coalesce((
    SELECT max(started_tokens) FROM tenant_shares AS share WHERE share.service_class = 'batch'
      AND share.model = waiting.model AND share.priority = waiting.priority), 0)
FROM waiting
ON CONFLICT DO NOTHING
""")

_FORGET = text("""
DELETE FROM tenant_shares AS share WHERE used_at < clock_timestamp() - :older_than AND NOT EXISTS (
    SELECT FROM chunks WHERE chunks.service_class = share.service_class AND chunks.model = share.model
      AND chunks.priority = share.priority AND chunks.tenant = share.tenant
      AND chunks.state IN ('waiting', 'running'))
""")


def arrive(session: Session, *, service_class: str, model: str, priority: int, tenant: str) -> None:
    """Call it before the chunks of a job become visible: a tenant without a share is not served."""
    values = {"service_class": service_class, "model": model, "priority": priority, "tenant": tenant}
    session.execute(_ARRIVE, values)


def settle(session: Session, chunk_ids: Sequence[int]) -> None:
    """For chunks that were claimed and ended: replaces what each might have taken by the answer tokens it took, one
    for a failed request."""
    if chunk_ids:
        session.execute(_SETTLE, {"chunk_ids": list(chunk_ids)})


def restore(session: Session) -> None:
    """Makes sure that whatever waits has a share: chunks that the release before cut have none."""
    session.execute(_RESTORE)


def forget(session: Session, *, older_than: timedelta) -> None:
    """Removes the shares of tenants that have nothing to run and were not served for so long."""
    session.execute(_FORGET, {"older_than": older_than})
