"""How much there is to do: what waits for a model, how fast queues are worked off, how many jobs of a key or tenant
have not ended. Cheap enough to be asked at every door: all of it reads partial indexes or a bounded number of newest
rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from core.job import ServiceClass
from db.jobs import UNFINISHED_STATES
from db.tables import JobRow, OutcomeRow

RECENT_ENTRIES = 10_000
RECENT_SECONDS = 60

_WAITING = text("""
SELECT count(*) FROM (
    SELECT FROM chunks WHERE state = 'waiting' AND service_class = :service_class AND model = :model LIMIT :bound
) AS waiting
""")

# Of the newest entries of all: how many they are bounds what it costs to ask.
_RATES = text("""
SELECT service_class, model, sum(num_requests), sum(prompt_tokens), sum(completion_tokens),
    greatest(1, extract(epoch FROM clock_timestamp() - min(at)))
FROM (SELECT * FROM usage_entries ORDER BY id DESC LIMIT :num_entries) AS newest
WHERE at > clock_timestamp() - make_interval(secs => :seconds) AND service_class IS NOT NULL
  AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)
GROUP BY service_class, model
""")

Queue = tuple[str, str]  # class and model


@dataclass(frozen=True, slots=True)
class Rate:
    """Of the last minute. rows: requests that ended, whatever came of them."""

    rows_per_second: float
    prompt_tokens_per_second: float
    completion_tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Unfinished:
    of_key: int
    of_tenant: int


def num_waiting(session: Session, model: str, *, bound: int) -> int:
    """Online requests that nobody runs yet; counted up to `bound`."""
    values = {"service_class": ServiceClass.ONLINE.value, "model": model, "bound": bound}
    return int(session.execute(_WAITING, values).scalar_one())


def rates(session: Session, *, tenant: str | None = None) -> dict[Queue, Rate]:
    """How fast each queue is worked off, of one tenant or of all; those are missing in which nothing has ended in the
    last minute."""
    values = {"num_entries": RECENT_ENTRIES, "seconds": RECENT_SECONDS, "tenant": tenant}
    rows = session.execute(_RATES, values)
    return {(row[0], row[1]): Rate(*(float(total) / float(row[5]) for total in row[2:5])) for row in rows}


def estimated_wait_seconds(num_waiting: int, rate: Rate | None) -> float | None:
    """Until those who wait are answered; None where nobody knows."""
    if not num_waiting:
        return 0.0
    return num_waiting / rate.rows_per_second if rate is not None and rate.rows_per_second else None


def outcomes(session: Session, job_id: int) -> Sequence[OutcomeRow]:
    """Of an online job, which has few."""
    return session.scalars(select(OutcomeRow).where(OutcomeRow.job_id == job_id)).all()


def unfinished(session: Session, *, tenant: str, key_id: int | None) -> Unfinished:
    """Counted under a lock of the tenant that lasts as long as the transaction, so that two requests at once do not
    both take the last place."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(tenant, 0))))
    query = select(func.count().filter(JobRow.key_id == key_id), func.count()).where(
        JobRow.tenant == tenant, JobRow.state.in_(UNFINISHED_STATES)
    )
    of_key, of_tenant = session.execute(query).one()
    return Unfinished(of_key, of_tenant)
