"""Takes away the directories of models that jobs made: of those that were removed, and of jobs that ended without one.
Runs on the node that holds them, in its heavy worker. The directory goes before the row, so a crash in between only
means that it is looked for again; a message that was lost comes again with the next run of retention.
"""

import logging
import os
import re
import shutil
from datetime import timedelta
from pathlib import Path

from celery import shared_task

from core.errors import ConfigurationError
from core.settings import Settings
from db import models
from db.native import artifacts
from tasks import dispatcher
from tasks.messages import REMOVE_ARTIFACTS
from tasks.queues import heavy_queue
from tasks.services import Services, current

logger = logging.getLogger(__name__)

# What a job leaves: the directory, and beside it the one that it filled and the lock under which it did.
_OF_JOB = re.compile(r"\.?(?P<job>job_[0-9a-f]{24})(\.partial|\.lock)?")


@shared_task(name=REMOVE_ARTIFACTS)
def remove_artifacts(node: str) -> None:
    services = current()
    if services.settings.node_name != node:
        raise ConfigurationError(f"this worker is on {services.settings.node_name}, got the artifacts of {node}")
    clean(services)


def clean(services: Services) -> None:
    """On this node."""
    settings = services.settings
    with services.database.begin() as session:
        leaving = artifacts.removed(session, node=settings.node_name)
    for row in leaving:
        if _take_away(settings, row.job_public_id):
            with services.database.begin() as session:
                artifacts.forget(session, row.id)
    held = {match["job"] for path in _entries(settings.artifacts_path) if (match := _OF_JOB.fullmatch(path.name))}
    with services.database.begin() as session:
        left_over = artifacts.without_artifact(session, sorted(held))
    for job in left_over:
        _take_away(settings, job)


def expire(services: Services) -> None:
    """Of all nodes: what is past its time is gone for its tenant."""
    days = services.settings.artifact_retention_days
    if not days:
        return
    with services.database.begin() as session:
        expired = artifacts.expire(session, timedelta(days=days))
    if expired:
        logger.info("%d artifacts expired", len(expired), extra={"event": "retention.artifacts", "ids": expired})


def wake_nodes(services: Services) -> None:
    """All that serve something, but for those that are busy: they are told the next time."""
    with services.database.begin() as session:
        nodes = models.list_nodes(session)
    for node in nodes:
        if dispatcher.queue_depth(services, heavy_queue(node)) == 0:
            services.messages.remove_artifacts(node)


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _take_away(settings: Settings, job: str) -> bool:
    """All that a job left on this node. False where it stays: a model is served from it, or it cannot be removed."""
    served = {os.path.realpath(source) for source in settings.model_sources.values()}
    found = [path for path in _entries(settings.artifacts_path) if _is_of(path, job)]
    if any(os.path.realpath(path) in served for path in found):
        logger.warning("the artifact of job %s was removed, but this node serves a model from it, so it stays", job)
        return False
    try:
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        logger.warning("the artifact of job %s cannot be removed from the disk, which is tried again: %s", job, error)
        return False
    if found:
        logger.info("the artifact of job %s is gone", job, extra={"event": "artifact.removed", "job": job})
    return True


def _is_of(path: Path, job: str) -> bool:
    match = _OF_JOB.fullmatch(path.name)
    return match is not None and match["job"] == job
