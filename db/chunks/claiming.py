"""Which chunk a worker is given: by priority, then in fair shares between tenants, then by age; and what waits.

Shares follow start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996): among the tenants
that wait for the same model at the same priority the one that was given the fewest answer tokens comes first, and is
charged what its chunk asks for at most, once, however often the chunk is claimed and whatever its priority becomes; the
end of the chunk makes it what it was. `db.shares` keeps the books.

Ageing: a worker asks now and then (`takes_oldest`) for the chunk that has waited longest, whatever its priority, so the
lowest priority moves too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from core.job import ServiceClass
from db.chunks.lease import LEASE_COLUMNS, Lease, Request, lease_of
from db.connection import Database, Statement


@dataclass(frozen=True, slots=True)
class Backlog:
    """names: `<job>#<chunk index>` of the best waiting chunks, best first."""

    service_class: str
    model: str
    names: list[str]


_OPEN_MODELS = """
SELECT wanted.model FROM unnest(CAST(:models AS text[])) AS wanted(model)
WHERE NOT EXISTS (SELECT FROM pauses WHERE pauses.service_class IN ('*', :service_class)
                  AND pauses.model IN ('*', wanted.model))
"""

# People who wait are served in order: no shares, whose row all claims of a tenant would have to update one by one.
_ONLINE_CANDIDATES = """
    SELECT candidate.id, candidate.priority, 0 AS used_tokens FROM open
    CROSS JOIN LATERAL (
        SELECT id, priority FROM chunks
        WHERE state = 'waiting' AND service_class = :service_class AND model = open.model
        ORDER BY {order} LIMIT 64
    ) AS candidate
"""

_SHARED_CANDIDATES = """
    SELECT candidate.id, share.priority, share.used_tokens FROM (
        SELECT share.model, share.tenant, share.priority, share.used_tokens FROM open
        JOIN tenant_shares AS share ON share.service_class = :service_class AND share.model = open.model
        {order}
    ) AS share
    CROSS JOIN LATERAL (
        SELECT id FROM chunks
        WHERE state = 'waiting' AND available_at IS NULL AND service_class = :service_class AND model = share.model
          AND priority = share.priority AND tenant = share.tenant
        ORDER BY id LIMIT 16
    ) AS candidate
    {order} {limit}
"""
# So the claim looks at those tenants whose turn it is, however many wait.
_BY_TURN = {"order": "ORDER BY share.priority DESC, share.used_tokens", "limit": "LIMIT 256"}
_ALL_TURNS = {"order": "", "limit": ""}

# The share that is charged is that by which the chunk was found, should its priority be changed at the same moment.
# One row is locked, the best that nobody else is claiming: locking one per tenant would take it from other claimers.
_CLAIM = """
WITH open AS ({open}), candidates AS ({candidates}), best AS (
    SELECT chunks.id, candidates.priority FROM chunks JOIN candidates ON candidates.id = chunks.id
    WHERE chunks.state = 'waiting' AND chunks.available_at IS NULL
    ORDER BY CASE WHEN :takes_oldest THEN 0 ELSE candidates.priority END DESC,
        CASE WHEN :takes_oldest THEN 0 ELSE candidates.used_tokens END, chunks.id
    LIMIT {limit} FOR UPDATE OF chunks SKIP LOCKED
), claimed AS (
    UPDATE chunks AS c SET state = 'running', owner = :owner, attempt = c.attempt + 1,
        lease_until = clock_timestamp() + make_interval(secs => :lease_seconds),
        charged_priority = CASE WHEN c.attempt = 0 THEN best.priority ELSE c.charged_priority END
    FROM best, jobs
    WHERE c.id = best.id AND jobs.id = c.job_id
    RETURNING {lease}, c.priority, c.cost_tokens, best.priority AS share_priority
){charge}
{result}
"""

_LEASED = "SELECT * FROM claimed"

# Where people wait: with the requests that have no outcome yet, which are few, in the order of their claims. The claim
# need not reach the disk at once, as nothing is lost with it: an answer that was committed under it takes it along, and
# without one the chunk waits again.
_LEASED_WITH_REQUESTS = """
SELECT claimed.*, asked.indexes, asked.bodies
FROM claimed CROSS JOIN (SELECT set_config('synchronous_commit', 'off', true)) AS quick
CROSS JOIN LATERAL (
    SELECT array_agg(r.index ORDER BY r.index) AS indexes, array_agg(r.body ORDER BY r.index) AS bodies
    FROM requests r
    WHERE r.job_id = claimed.job_id AND NOT EXISTS (
        SELECT FROM outcomes o WHERE o.job_id = r.job_id AND o.index = r.index)
) AS asked
ORDER BY claimed.priority DESC, claimed.chunk_id
"""

_CHARGE = """, charged AS (
    UPDATE tenant_shares AS share SET started_tokens = share.used_tokens, used_at = clock_timestamp(),
        used_tokens = share.used_tokens + CASE WHEN claimed.attempt = 1 THEN claimed.cost_tokens ELSE 0 END
    FROM claimed
    WHERE share.service_class = claimed.service_class AND share.model = claimed.model
      AND share.priority = claimed.share_priority AND share.tenant = claimed.tenant
)"""


def _claim(candidates: str, *, charge: str = "", result: str = _LEASED, limit: str = "1") -> str:
    return _CLAIM.format(
        open=_OPEN_MODELS, candidates=candidates, lease=LEASE_COLUMNS, charge=charge, result=result, limit=limit
    )


_ONLINE = _ONLINE_CANDIDATES.format(order="priority DESC, id")
_ONLINE_OLDEST = _ONLINE_CANDIDATES.format(order="id")
_CLAIM_ONLINE, _CLAIM_ONLINE_OLDEST = text(_claim(_ONLINE)), text(_claim(_ONLINE_OLDEST))
_CLAIM_SHARED, _CLAIM_SHARED_OLDEST = (
    text(_claim(_SHARED_CANDIDATES.format(**turn), charge=_CHARGE)) for turn in (_BY_TURN, _ALL_TURNS)
)
_CLAIM_ASKED, _CLAIM_ASKED_OLDEST = (
    Statement(_claim(candidates, result=_LEASED_WITH_REQUESTS, limit=":limit"))
    for candidates in (_ONLINE, _ONLINE_OLDEST)
)

# The first of each priority, by an index that those which wait for another try are not in, however many they are.
_BACKLOG = text("""
SELECT wanted.service_class, wanted.model, waiting.names
FROM (SELECT DISTINCT c.service_class, p.model
      FROM placements p CROSS JOIN (VALUES ('online'), ('batch')) AS c(service_class)) AS wanted
CROSS JOIN LATERAL (
    SELECT array_agg(best.name) AS names FROM (
        SELECT jobs.public_id || '#' || ready.index AS name
        FROM generate_series(9, 0, -1) AS of(priority)
        CROSS JOIN LATERAL (
            SELECT id, job_id, index FROM chunks
            WHERE state = 'waiting' AND available_at IS NULL AND service_class = wanted.service_class
              AND model = wanted.model AND priority = of.priority
            ORDER BY tenant, id LIMIT :window) AS ready
        JOIN jobs ON jobs.id = ready.job_id
        ORDER BY of.priority DESC, ready.id LIMIT :window) AS best) AS waiting
WHERE waiting.names IS NOT NULL
  AND NOT EXISTS (SELECT FROM pauses WHERE pauses.service_class IN ('*', wanted.service_class)
                  AND pauses.model IN ('*', wanted.model))
""")


def claim(
    session: Session,
    *,
    owner: str,
    service_class: str,
    models: Sequence[str],
    lease_seconds: float,
    takes_oldest: bool = False,
) -> Lease | None:
    """The best waiting chunk among these models, leased to `owner`; None when nothing waits, or all is paused."""
    statement = _CLAIM_SHARED_OLDEST if takes_oldest else _CLAIM_SHARED
    if service_class == ServiceClass.ONLINE:
        statement = _CLAIM_ONLINE_OLDEST if takes_oldest else _CLAIM_ONLINE
    values = {
        "owner": owner,
        "service_class": service_class,
        "models": list(models),
        "lease_seconds": lease_seconds,
        "takes_oldest": takes_oldest,
    }
    row = session.execute(statement, values).one_or_none()
    if row is None:
        return None
    return lease_of(row._mapping, lease_seconds)


def claim_online(
    database: Database,
    *,
    owner: str,
    models: Sequence[str],
    lease_seconds: float,
    limit: int,
    takes_oldest: bool = False,
) -> list[tuple[Lease, list[Request]]]:
    """The best online chunks that wait, `limit` at most, leased to `owner`, each with its unfinished requests. A
    transaction of its own."""
    values = {
        "owner": owner,
        "service_class": ServiceClass.ONLINE.value,
        "models": list(models),
        "lease_seconds": lease_seconds,
        "takes_oldest": takes_oldest,
        "limit": limit,
    }
    statement = _CLAIM_ASKED_OLDEST if takes_oldest else _CLAIM_ASKED
    return [_asked(row, lease_seconds) for row in database.run(statement, values)]


def _asked(row: Mapping[str, Any], lease_seconds: float) -> tuple[Lease, list[Request]]:
    found = zip(row["indexes"] or (), row["bodies"] or (), strict=True)
    return lease_of(row, lease_seconds), [Request(index, body.encode()) for index, body in found]


def backlog(session: Session, *, window: int) -> list[Backlog]:
    """What waits for each placed model and class that is not paused: its best chunks, `window` at most."""
    return [Backlog(*row) for row in session.execute(_BACKLOG, {"window": window})]
