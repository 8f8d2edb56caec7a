"""Runs one chunk: the task behind every online answer and every batch row."""

import logging

from celery import shared_task

from core.errors import ConfigurationError, Unavailable
from core.job import ServiceClass
from tasks import dispatcher
from tasks.messages import RUN_CHUNK
from tasks.services import ChunkRun, Services, current
from tasks.upkeep import finalizing

logger = logging.getLogger(__name__)


@shared_task(name=RUN_CHUNK)
def run_chunk(model: str, chunk: str, service_class: str) -> None:
    """A wake-up: claims the best waiting chunk of the class and runs it; `model` and `chunk` say which was meant."""
    services = current()
    if services.chunks is None:
        raise ConfigurationError(f"this worker has no engine, but got chunk {chunk} of {model}: check its queues")
    run = services.chunks.run(ServiceClass(service_class))
    if run is None:
        return
    if run.is_closed:
        _close(services, ServiceClass(service_class), run)
    dispatcher.refill(services)


def _close(services: Services, service_class: ServiceClass, run: ChunkRun) -> None:
    """A job of one request ends here; one with files is finalized by a worker that has time for it."""
    if service_class is ServiceClass.ONLINE:
        if run.is_done:  # the answer is committed; whoever waits need not wait for the rest
            services.relay.announce(run.job_public_id)
        finalizing.finalize(services, run.job_public_id)
        if not run.is_done:
            services.relay.announce(run.job_public_id)
        return
    if finalizing.is_ready(services, run.job_id):
        try:
            services.messages.finalize_job(run.job_public_id)
        except Unavailable as error:
            logger.warning("job %s waits for its files: %s", run.job_public_id, error)
