"""Validates a batch: reads its file line by line, refuses it whole on the first bad set of lines, or copies the
requests and cuts them into chunks. One transaction, so a crash leaves the job `validating` and nothing else. It locks
the job at its very end alone, so that the job can be stopped and changed all the while; of one that was stopped nothing
is left but its end."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from celery import shared_task
from sqlalchemy.orm import Session

from core.chunks import Cutter
from core.errors import MillraceError, NotFound
from core.job import JobState
from core.openai.batchfile import BatchFileError, BatchReader, LineError, split_lines
from db import intake, jobs, models
from db.tables import JobRow
from tasks import dispatcher
from tasks.messages import VALIDATE_BATCH
from tasks.services import Services, current
from tasks.upkeep import endings, finalizing, webhooks

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # as often it is asked whether the job was stopped

_FAULT = "the server failed while it validated this file; its log (upkeep.log) says why"


class _Stopped(Exception):
    """The job is not validating any more: somebody cancelled it."""


@shared_task(name=VALIDATE_BATCH)
def validate_batch(job: str) -> None:
    services = current()
    if validate(services, job):
        dispatcher.refill(services)


def validate(services: Services, public_id: str) -> bool:
    """True when the job is in progress now. Does nothing when it is not validating, or somebody else validates it."""
    try:
        with services.database.begin() as session:
            job = intake.begin_validating(session, public_id)
            if job is None:
                return False
            _accept(services, session, job)
    except _Stopped:
        logger.info("job %s was stopped while it was validated", public_id)
        finalizing.finalize(services, public_id)
        return False
    except BatchFileError as error:
        _refuse(services, public_id, error.errors)
        return False
    except NotFound as error:
        _refuse(services, public_id, [LineError("file_not_found", error.message)])
        return False
    except MillraceError:
        raise
    except Exception:  # a fault of ours must not leave the batch validating for ever
        logger.exception("job %s could not be validated", public_id, extra={"event": "job.refused", "job": public_id})
        _refuse(services, public_id, [LineError("internal_error", _FAULT)])
        return False
    return True


def _accept(services: Services, session: Session, job: JobRow) -> None:
    kinds = {row.name: row.kind for row in models.list_served(session)}
    reader = BatchReader(
        endpoint=job.endpoint or "",
        max_rows=services.settings.max_batch_rows,
        known_models=kinds,
        model_kinds=kinds,
    )
    assert job.input_file_id is not None
    lines = _while_validating(services, job.id, split_lines(services.files.read(job.input_file_id)))
    cutter = Cutter(services.settings.chunk_rows, services.settings.chunk_tokens)
    num_requests = intake.copy_requests(session, job.id, reader.rows(lines), cutter)
    assert reader.model is not None
    if intake.lock_validating(session, job.public_id) is None:
        raise _Stopped
    intake.add_chunks(session, job, reader.model, cutter.finish())
    jobs.move(session, job.id, JobState.IN_PROGRESS, {"model": reader.model, "num_requests": num_requests})
    logger.info(
        "job %s has %d requests for %s",
        job.public_id,
        num_requests,
        reader.model,
        extra={"event": "job.accepted", "job": job.public_id, "num_requests": num_requests},
    )


def _while_validating(services: Services, job_id: int, lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines, as long as the job is still to be validated. Asks on a connection of its own: that of the transaction
    is busy with the COPY. Raises _Stopped."""
    looked_at = time.monotonic()
    for line in lines:
        if time.monotonic() - looked_at >= LOOK_SECONDS:
            with services.database.begin() as session:
                if not intake.is_validating(session, job_id):
                    raise _Stopped
            looked_at = time.monotonic()
        yield line


def _refuse(services: Services, public_id: str, errors: list[LineError]) -> None:
    values = {"errors": {"object": "list", "data": [asdict(error) for error in errors]}}
    with services.database.begin() as session:
        job = intake.lock_validating(session, public_id)
        if job is None:
            return
        jobs.move(session, job.id, JobState.FAILED, values)
        has_webhooks = endings.announce(session, job, JobState.FAILED)
    if has_webhooks:
        webhooks.announced(services)
    logger.info("job %s refused: %s", public_id, errors[0].message, extra={"event": "job.refused", "job": public_id})
