"""How much there is to do: what waits for a model, how fast it is answered, how many jobs of a key or tenant have not
ended. Cheap enough to be asked at every door: all of it reads partial indexes or a bounded number of newest rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from core.job import ServiceClass
from db.jobs import UNFINISHED_STATES
from db.tables import JobRow, OutcomeRow

RECENT_JOBS = 2000
RECENT_SECONDS = 60

_WAITING = text("""
SELECT count(*) FROM (
    SELECT FROM chunks WHERE state = 'waiting' AND service_class = :service_class AND model = :model LIMIT :bound
) AS waiting
""")

_RATE = text("""
SELECT count(*), extract(epoch FROM clock_timestamp() - min(ended_at)) FROM (
    SELECT service_class, model, completed_at AS ended_at FROM jobs ORDER BY id DESC LIMIT :num_jobs
) AS newest
WHERE service_class = :service_class AND model = :model
  AND ended_at > clock_timestamp() - make_interval(secs => :seconds)
""")


@dataclass(frozen=True, slots=True)
class Unfinished:
    of_key: int
    of_tenant: int


def num_waiting(session: Session, model: str, *, bound: int) -> int:
    """Online requests that nobody runs yet; counted up to `bound`."""
    values = {"service_class": ServiceClass.ONLINE.value, "model": model, "bound": bound}
    return int(session.execute(_WAITING, values).scalar_one())


def answers_per_second(session: Session, model: str) -> float | None:
    """Of online requests in the last minute; None where there was none."""
    values = {
        "service_class": ServiceClass.ONLINE.value,
        "model": model,
        "num_jobs": RECENT_JOBS,
        "seconds": RECENT_SECONDS,
    }
    num_answers, seconds = session.execute(_RATE, values).one()
    return None if not num_answers else num_answers / max(float(seconds), 1.0)


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
