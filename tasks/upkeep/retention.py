"""Removes what is past its time: jobs with their rows, expired files, bytes that no file names, idempotency keys,
webhook messages, models that jobs made (their nodes take the directories away). In steps that each commit, for a
bounded time; what is left is taken up behind the other upkeep. Safe to run twice, at once or again after a crash: each
step takes what nobody else holds, and rows go before bytes.
"""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import islice

from celery import shared_task

from core.job import ServiceClass
from core.settings import Settings
from db.upkeep import jobs, rows
from db.upkeep.jobs import EndedJob
from tasks.messages import REMOVE_EXPIRED
from tasks.services import Services, current
from tasks.upkeep import artifacts

logger = logging.getLogger(__name__)

KEY_LIFETIME = timedelta(hours=24)
ORPHAN_AGE = timedelta(days=1)  # no upload and no finalizer takes as long
RUN_SECONDS = 20.0
PAGE_ORPHANS = 200

IsOver = Callable[[], bool]


@shared_task(name=REMOVE_EXPIRED)
def remove_expired() -> None:
    services = current()
    end = time.monotonic() + RUN_SECONDS
    if not clean(services, lambda: time.monotonic() > end):
        services.messages.remove_expired()


def clean(services: Services, is_over: IsOver) -> bool:
    """True when nothing is left to remove, False when time is over. Keys go before the jobs that they name."""
    parts = (_keys, _deliveries, _jobs, _files, _orphans, _artifacts)
    return all(part(services, is_over) for part in parts)


def _keys(services: Services, is_over: IsOver) -> bool:
    while not is_over():
        with services.database.begin() as session:
            if not rows.remove_keys(session, KEY_LIFETIME):
                return True
    return False


def _deliveries(services: Services, is_over: IsOver) -> bool:
    days = services.settings.webhook_retention_days
    while days and not is_over():
        with services.database.begin() as session:
            if not rows.remove_deliveries(session, timedelta(days=days)):
                return True
    return not days


def _jobs(services: Services, is_over: IsOver) -> bool:
    return all(_jobs_of(services, *terms, is_over) for terms in _terms(services.settings))


def _terms(settings: Settings) -> Iterator[tuple[ServiceClass, timedelta, bool]]:
    """Which jobs are kept for how long, and whether stored responses are among them."""
    if settings.online_retention_days:
        yield ServiceClass.ONLINE, timedelta(days=settings.online_retention_days), False
    if settings.job_retention_days:
        for service_class in ServiceClass:
            yield service_class, timedelta(days=settings.job_retention_days), True


def _jobs_of(
    services: Services, service_class: ServiceClass, age: timedelta, takes_responses: bool, is_over: IsOver
) -> bool:
    num_removed = 0
    while not is_over():
        with services.database.begin() as session:
            found = jobs.ended(session, service_class, age, takes_responses=takes_responses)
        if not found:
            break
        for group in jobs.steps(found):
            if not _remove(services, group, is_over):
                return False
            num_removed += len(group)
    if num_removed:
        logger.info("%d old jobs removed", num_removed, extra={"event": "retention.jobs", "num_jobs": num_removed})
    return not is_over()


def _remove(services: Services, group: list[EndedJob], is_over: IsOver) -> bool:
    """False when time was over before the jobs were gone."""
    if len(group) == 1:
        for first in range(0, group[0].num_requests, jobs.STEP_ROWS):
            if is_over():
                return False
            with services.database.begin() as session:
                jobs.thin(session, group[0], first)
    with services.database.begin() as session:
        jobs.remove(session, group)
    return True


def _files(services: Services, is_over: IsOver) -> bool:
    while not is_over():
        with services.database.begin() as session:
            expired = rows.remove_expired_files(session)
        for file_id in expired:
            services.files.delete(file_id)
        if not expired:
            return True
    return False


def _orphans(services: Services, is_over: IsOver) -> bool:
    """Bytes whose upload died before its row, or whose row went before a crash."""
    stored = services.files.stored(older_than=ORPHAN_AGE)
    while not is_over():
        page = list(islice(stored, PAGE_ORPHANS))
        if not page:
            return True
        with services.database.begin() as session:
            orphans = rows.without_row(session, page)
        for file_id in orphans:
            services.files.delete(file_id)
            logger.warning(
                "bytes of file %s removed: no row names them",
                file_id,
                extra={"event": "retention.orphan", "file": file_id},
            )
    return False


def _artifacts(services: Services, is_over: IsOver) -> bool:
    if not is_over():
        artifacts.expire(services)
        artifacts.wake_nodes(services)
        return True
    return False
