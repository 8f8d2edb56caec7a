"""Runs chunks: the task behind every online answer and every batch row."""

import logging
import time

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
    """A wake-up: claims the best waiting chunk of the class and runs it, then the next, as long as its turn lasts;
    `model` and `chunk` say which was meant."""
    services = current()
    if services.chunks is None:
        raise ConfigurationError(f"this worker has no engine, but got chunk {chunk} of {model}: check its queues")
    wanted = ServiceClass(service_class)
    turn_ends_at = time.monotonic() + (TURN_SECONDS if wanted is ServiceClass.BATCH else 0.0)
    while (run := services.chunks.run(wanted)) is not None:
        if run.lost_model is not None:
            _report_loss(services, run.lost_model)
        if run.is_closed:
            _close(services, wanted, run)
        # Whoever waits for an answer sends a message with each request; one that is handed back needs another.
        if wanted is ServiceClass.BATCH or not run.is_closed:
            dispatcher.refill(services)
        if not run.is_done or time.monotonic() >= turn_ends_at:
            return


def _report_loss(services: Services, model: str) -> None:
    """An engine that keeps dying closes the door to those who would wait for it."""
    settings = services.settings
    device = f"{settings.node_name}:{settings.device}"
    Breaker.of(settings, services.redis).failed(model, device=device)


def _close(services: Services, service_class: ServiceClass, run: ChunkRun) -> None:
    """A job of one request ends here; one with files is finalized by a worker that has time for it."""
    if service_class is ServiceClass.ONLINE:
        if run.is_done:  # the answer is committed; whoever waits need not wait for the rest
            services.relay.announce(run.job_public_id, run.end)
        if not run.is_completed:
            finalizing.finalize(services, run.job_public_id)
        if not run.is_done:
            services.relay.announce(run.job_public_id)
        return
    if finalizing.is_ready(services, run.job_id):
        try:
            services.messages.finalize_job(run.job_public_id)
        except Unavailable as error:
            logger.warning("job %s waits for its files: %s", run.job_public_id, error)
