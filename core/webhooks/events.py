"""The events that an endpoint can ask for. OpenAI's names where OpenAI has the thing, `job.…` for jobs of our own
routes."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from core.job import JobState


class EventType(StrEnum):
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"
    RESPONSE_COMPLETED = "response.completed"
    RESPONSE_FAILED = "response.failed"
    RESPONSE_CANCELLED = "response.cancelled"
    RESPONSE_INCOMPLETE = "response.incomplete"
    JOB_COMPLETED = "job.completed"
    JOB_FAILED = "job.failed"
    JOB_EXPIRED = "job.expired"
    JOB_CANCELLED = "job.cancelled"


_BATCHES: Mapping[JobState, EventType] = MappingProxyType(
    {
        JobState.COMPLETED: EventType.BATCH_COMPLETED,
        JobState.FAILED: EventType.BATCH_FAILED,
        JobState.EXPIRED: EventType.BATCH_EXPIRED,
        JobState.CANCELLED: EventType.BATCH_CANCELLED,
    }
)
_JOBS: Mapping[JobState, EventType] = MappingProxyType(
    {
        JobState.COMPLETED: EventType.JOB_COMPLETED,
        JobState.FAILED: EventType.JOB_FAILED,
        JobState.EXPIRED: EventType.JOB_EXPIRED,
        JobState.CANCELLED: EventType.JOB_CANCELLED,
    }
)


def of_ended_job(public_id: str, state: JobState) -> EventType:
    """`state`: one that ends a job."""
    return (_BATCHES if public_id.startswith("batch_") else _JOBS)[state]
