"""Runs chunks: the task behind every online answer and every batch row."""

import logging
import time
from collections.abc import Sequence

from celery import shared_task

from core.errors import ConfigurationError, Unavailable
from core.job import ServiceClass
from tasks import dispatcher
from tasks.breaker.circuit import Breaker
from tasks.messages import RUN_CHUNK
from tasks.services import ChunkRun, Services, current
from tasks.upkeep import finalizing

logger = logging.getLogger(__name__)

TURN_SECONDS = 1.0  # a message costs as much as hundreds of short rows: it is good for several chunks


@shared_task(name=RUN_CHUNK)
def run_chunk(model: str, chunk: str, service_class: str) -> None:
    """A wake-up; `model` and `chunk` say which was meant. What people wait for runs on a thread of its own; of a batch
    the best waiting chunk is claimed and run, then the next, as long as the message's turn lasts."""
    services = current()
    if services.chunks is None:
        raise ConfigurationError(f"this worker has no engine, but got chunk {chunk} of {model}: check its queues")
    if ServiceClass(service_class) is ServiceClass.ONLINE:
        services.chunks.serve_online(lambda runs: _close_online(services, runs))
        return
    turn_ends_at = time.monotonic() + TURN_SECONDS
    while (run := services.chunks.run_batch()) is not None:
        if run.lost_model is not None:
            _report_loss(services, run.lost_model)
        if run.is_closed:
            _close_batch(services, run)
        dispatcher.refill(services)
        if not run.is_done or time.monotonic() >= turn_ends_at:
            return


def _report_loss(services: Services, model: str) -> None:
    """An engine that keeps dying closes the door to those who would wait for it."""
    settings = services.settings
    device = f"{settings.node_name}:{settings.device}"
    Breaker.of(settings, services.redis).failed(model, device=device)


def _close_batch(services: Services, run: ChunkRun) -> None:
    """A job with files is finalized by a worker that has time for it."""
    if finalizing.is_ready(services, run.job_id):
        try:
            services.messages.finalize_job(run.job_public_id)
        except Unavailable as error:
            logger.warning("job %s waits for its files: %s", run.job_public_id, error)


def _close_online(services: Services, runs: Sequence[ChunkRun]) -> None:
    """A job of one request ends here. Answers that are committed are told before all else."""
    for run in runs:
        if run.is_done:
            services.relay.announce(run.job_public_id, run.end, is_streamed=run.is_streamed)
    for run in runs:
        if run.lost_model is not None:
            _report_loss(services, run.lost_model)
        if run.is_closed and not run.is_completed:
            finalizing.finalize(services, run.job_public_id)
        if run.is_closed and not run.is_done:
            services.relay.announce(run.job_public_id)
    if not runs or any(not run.is_closed for run in runs):  # what is left, or handed back, needs another message
        dispatcher.refill(services)
