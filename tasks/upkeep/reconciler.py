"""Puts right what crashes and lost messages leave behind, from PostgreSQL alone: expired leases go back, overdue jobs
end, jobs that wait for a message get it again, and queues are refilled. Safe to run twice at once."""

import logging
from datetime import timedelta

from celery import shared_task

from core.job import JobState
from db import chunks, jobs, shares
from db.access import usage
from db.access.load import RECENT_SECONDS
from db.upkeep import looks
from tasks import dispatcher, heavy
from tasks.messages import RECONCILE
from tasks.queues import UPKEEP
from tasks.services import Services, current

logger = logging.getLogger(__name__)

# Workers of a node may be set to longer leases than this one; beyond it the time was another clock's.
LONGEST_LEASES = 4
FORGET_SHARES_AFTER = timedelta(hours=1)
UPKEEP_WINDOW = 16
MOST_ENTRIES = 20_000
RATES_NEED = timedelta(seconds=2 * RECENT_SECONDS)


@shared_task(name=RECONCILE)
def reconcile() -> None:
    services = current()
    take_back(services)
    expire_overdue(services)
    move_on(services)
    restore_shares(services)
    dispatcher.refill(services)
    heavy.wake_nodes(services)
    forget_shares(services)  # bookkeeping comes last: nothing waits for it
    fold_usage(services)


def take_back(services: Services) -> int:
    """Returns how many chunks lost their worker."""
    lease_seconds = services.settings.lease_seconds
    with services.database.begin() as session:
        chunks.clamp(session, lease_seconds=lease_seconds, longest_seconds=lease_seconds * LONGEST_LEASES)
        expired = chunks.expire(session)
        chunks.wake_delayed(session)
    for _, job, index, attempt in expired:
        logger.warning(
            "chunk %d of job %s lost its worker (attempt %d); its unfinished requests run again",
            index,
            job,
            attempt,
            extra={"event": "chunk.expired", "job": job, "chunk": index, "attempt": attempt},
        )
    return len(expired)


def expire_overdue(services: Services) -> None:
    """One job in a transaction: those of several would hold shares of tenants while they wait for chunks."""
    for _ in range(looks.MOST_JOBS):
        with services.database.begin() as session:
            found = looks.overdue(session, limit=1)
            for job in found:
                jobs.stop(session, job, JobState.EXPIRED)
        if not found:
            return
        (job,) = found
        logger.warning(
            "job %s is past its window; what did not run expires",
            job.public_id,
            extra={"event": "job.expiring", "job": job.public_id},
        )


def restore_shares(services: Services) -> None:
    with services.database.begin() as session:
        shares.restore(session)


def forget_shares(services: Services) -> None:
    with services.database.begin() as session:
        shares.forget(session, older_than=FORGET_SHARES_AFTER)


def fold_usage(services: Services) -> None:
    with services.database.begin() as session:
        usage.fold(session, limit=MOST_ENTRIES, older_than=RATES_NEED)


def move_on(services: Services) -> None:
    """Sends again what jobs without a busy chunk wait for: validation or finalization. No more than the queue has room
    for, because they may only be waiting for their turn."""
    room = max(0, UPKEEP_WINDOW - dispatcher.queue_depth(services, UPKEEP))
    with services.database.begin() as session:
        looks.note_ended(session)
        waiting = looks.look(session, room=room)
    for job in waiting:
        if job.state == JobState.VALIDATING:
            services.messages.validate_batch(job.public_id)
        else:
            services.messages.finalize_job(job.public_id)
