"""Long jobs that need a device of their own: their torch part runs as `python -m engine.jobs …`, a process that dies
with the task and so frees the device. Its worker is prefork with spawn, where Celery's own time limits and terminate
work.
"""

import os
import subprocess
import sys

from celery import shared_task

from core.errors import ModelFailure
from core.lifeline import PARENT_VARIABLE
from tasks.messages import TRAIN_BUILTIN_MODEL

TRAINING_LIMIT_SECONDS = 900


@shared_task(name=TRAIN_BUILTIN_MODEL, time_limit=TRAINING_LIMIT_SECONDS)
def train_builtin_model(directory: str) -> None:
    """Trains the built-in model into a directory of this node; does nothing when it is there."""
    run_engine_job("train-builtin", "--out", directory)


def run_engine_job(*arguments: str) -> None:
    """Raises ModelFailure with the end of what the process wrote."""
    command = [sys.executable, "-P", "-m", "engine.jobs", *arguments]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ModelFailure(f"engine job {arguments[0]} ended with status {done.returncode}: {done.stderr[-2000:]}")
