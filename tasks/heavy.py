"""Jobs that are no inference (warming, benchmark, quantization) and the training of the built-in model. What needs
torch runs as `python -m engine.jobs …`, a process that dies with its task and so frees the device."""

import os
import subprocess
import sys
from itertools import groupby
from operator import itemgetter

from celery import shared_task

from core.errors import ConfigurationError, ModelFailure
from core.lifeline import PARENT_VARIABLE
from db.native import heavy
from tasks import dispatcher
from tasks.messages import RUN_HEAVY, TRAIN_BUILTIN_MODEL
from tasks.queues import heavy_queue
from tasks.services import Services, current
from tasks.upkeep import finalizing

TRAINING_LIMIT_SECONDS = 900
NODE_WINDOW = 2  # messages in the queue of a node; what waits beyond them waits in PostgreSQL


@shared_task(name=RUN_HEAVY)
def run_heavy(job: str) -> None:
    """A wake-up: claims the best waiting job for this node and runs it; `job` says which was meant."""
    services = current()
    if services.heavy is None:
        raise ConfigurationError(f"this worker runs no heavy jobs, but got {job}: check its queues")
    run = services.heavy.run()
    if run is None:
        return
    if run.is_stopped:
        finalizing.finalize(services, run.job_public_id)
    wake_nodes(services)


def wake_nodes(services: Services) -> int:
    """Sends wake-ups to the nodes that may run what waits, up to the window of each. Returns how many were sent.
    Raises Unavailable."""
    with services.database.begin() as session:
        waiting = heavy.waiting(session)
    num_sent = 0
    for node, pairs in groupby(waiting, key=itemgetter(0)):
        depth = dispatcher.queue_depth(services, heavy_queue(node))
        for _, job in list(pairs)[depth:NODE_WINDOW]:
            services.messages.run_heavy(node, job)
            num_sent += 1
    return num_sent


@shared_task(name=TRAIN_BUILTIN_MODEL)
def train_builtin_model(directory: str) -> None:
    """Trains the built-in model into a directory of this node; does nothing when it is there."""
    run_engine_job("train-builtin", "--out", directory)


def run_engine_job(*arguments: str) -> None:
    """Raises ModelFailure with the end of what the process wrote."""
    command = [sys.executable, "-P", "-m", "engine.jobs", *arguments]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=TRAINING_LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ModelFailure(f"engine job {arguments[0]} took more than {TRAINING_LIMIT_SECONDS} s") from error
    if done.returncode != 0:
        raise ModelFailure(f"engine job {arguments[0]} ended with status {done.returncode}: {done.stderr[-2000:]}")
