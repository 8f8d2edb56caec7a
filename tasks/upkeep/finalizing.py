"""Ends a job: when no chunk is busy any more, unfinished requests get the outcome that they never ran, the output
and error files are written, and the state becomes `completed`, `cancelled` or `expired`.

Safe to run twice, at once or again after a crash: an advisory lock per job lets one in, file ids are made of the job's,
and the last step is one transaction.
"""

import hashlib
import logging
import threading
from dataclasses import dataclass
from datetime import timedelta

import msgspec
from celery import shared_task

from core.job import JobState, ServiceClass
from db import files, jobs, results
from db.results import Totals
from db.tables import FileRow, JobRow
from tasks.messages import FINALIZE_JOB
from tasks.services import Services, current
from tasks.upkeep import endings, webhooks

logger = logging.getLogger(__name__)

_UNFINISHED_MESSAGES = {
    JobState.EXPIRED: "This request could not be executed before the completion window expired.",
    JobState.CANCELLED: "This request was not executed because the batch was cancelled.",
}


MOST_AT_ONCE = 4
_room = threading.BoundedSemaphore(MOST_AT_ONCE)


@dataclass(frozen=True, slots=True)
class End:
    """A job that has ended. `has_webhooks`: somebody wants to hear of it."""

    has_webhooks: bool


@shared_task(name=FINALIZE_JOB)
def finalize_job(job: str) -> None:
    finalize(current(), job)


def is_ready(services: Services, job_id: int) -> bool:
    with services.database.begin() as session:
        progress = jobs.progress(session, [job_id]).get(job_id)
    return progress is None or progress.num_busy_chunks == 0


def finalize(services: Services, public_id: str) -> None:
    """Does nothing while chunks are busy, or while somebody else finalizes the job. No more at once than the pool of
    connections has room for: each holds one while it waits for another."""
    with _room, services.database.begin() as guard:
        job = jobs.begin_finalizing(guard, public_id)
        if job is None:
            return
        totals = _close_requests(services, job)
        output = _write_file(services, job, is_success=True) if _has_files(job) and totals.num_completed else None
        errors = _write_file(services, job, is_success=False) if _has_files(job) and totals.num_failed else None
        end = _end(services, job, output, errors)
    if end is None:
        logger.info("job %s was stopped while it was finalized; it is done again", job.public_id)
        return
    logger.info(
        "job %s ended",
        job.public_id,
        extra={"event": "job.ended", "job": job.public_id, "ending": _ending(job).value},
    )
    if end.has_webhooks:
        webhooks.announced(services)


def _has_files(job: JobRow) -> bool:
    return job.service_class == ServiceClass.BATCH


def _ending(job: JobRow) -> JobState:
    return JobState(job.ending) if job.ending else JobState.COMPLETED


def _close_requests(services: Services, job: JobRow) -> Totals:
    ending = _ending(job)
    with services.database.begin() as session:
        jobs.move(session, job.id, JobState.FINALIZING)
        if ending in _UNFINISHED_MESSAGES:
            error = {"code": results.UNFINISHED_CODES[ending], "message": _UNFINISHED_MESSAGES[ending]}
            results.close_unfinished(session, job, msgspec.json.encode(error).decode())
        return results.total(session, job)


def _write_file(services: Services, job: JobRow, *, is_success: bool) -> FileRow:
    """Only where there is a line for it: OpenAI leaves an empty file out."""
    name = "output" if is_success else "error"
    file_id = "file-" + hashlib.sha256(f"{job.public_id}/{name}".encode()).hexdigest()[:24]
    num_bytes = services.files.write(file_id, results.lines(services.database, job, is_success=is_success))
    return FileRow(
        id=file_id,
        tenant=job.tenant,
        purpose="batch_output",
        filename=f"{job.public_id}_{name}.jsonl",
        num_bytes=num_bytes,
    )


def _lifetime(services: Services, job: JobRow) -> timedelta | None:
    """Of the files of a job: what its user asked for, or what the settings say."""
    if job.output_expires_after_seconds is not None:
        return timedelta(seconds=job.output_expires_after_seconds)
    days = services.settings.file_retention_days
    return timedelta(days=days) if days else None


def _end(services: Services, job: JobRow, output: FileRow | None, errors: FileRow | None) -> End | None:
    """None when the job was cancelled meanwhile, which ends it another way."""
    values = {"output_file_id": output and output.id, "error_file_id": errors and errors.id}
    with services.database.begin() as session:
        for file in filter(None, (output, errors)):
            files.put(session, file, lifetime=_lifetime(services, job))
        if not jobs.move(session, job.id, _ending(job), values):
            return None
        return End(endings.announce(session, job, _ending(job)))
