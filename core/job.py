"""The states of jobs, chunks and requests, and the only tables that say which state may follow which.

Job states are those of the OpenAI Batch object. A chunk is the unit that a Celery message names, a worker leases
and a crash loses. `db` changes a state only along these tables, in the same statement that asks for the old one.
"""

from enum import StrEnum
from types import MappingProxyType

DEFAULT_TENANT = "default"
MIN_PRIORITY, DEFAULT_PRIORITY, MAX_PRIORITY = 0, 5, 9


class JobKind(StrEnum):
    INFERENCE = "inference"
    QUANTIZATION = "quantization"
    WARMING = "warming"
    BENCHMARK = "benchmark"


class ServiceClass(StrEnum):
    """Who waits for the answer: a person (`online`) or nobody before the morning (`batch`). `heavy` is work that is no
    inference: it runs on a node, not through the queue of a model."""

    ONLINE = "online"
    BATCH = "batch"
    HEAVY = "heavy"


class JobState(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class ChunkState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


class RequestState(StrEnum):
    """Of a request; it has no column, because its outcome, or its retry, is its state."""

    WAITING = "waiting"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNEXECUTED = "unexecuted"


JOB_MOVES: MappingProxyType[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.VALIDATING: frozenset({JobState.FAILED, JobState.IN_PROGRESS, JobState.CANCELLING}),
        JobState.IN_PROGRESS: frozenset({JobState.FINALIZING, JobState.FAILED, JobState.CANCELLING}),
        JobState.FINALIZING: frozenset({JobState.COMPLETED, JobState.EXPIRED}),
        JobState.CANCELLING: frozenset({JobState.CANCELLED}),
        JobState.COMPLETED: frozenset(),
        JobState.EXPIRED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELLED: frozenset(),
    }
)

CHUNK_MOVES: MappingProxyType[ChunkState, frozenset[ChunkState]] = MappingProxyType(
    {
        ChunkState.WAITING: frozenset({ChunkState.RUNNING, ChunkState.CANCELLED}),
        ChunkState.RUNNING: frozenset({ChunkState.DONE, ChunkState.WAITING, ChunkState.CANCELLED}),
        ChunkState.DONE: frozenset(),
        ChunkState.CANCELLED: frozenset(),
    }
)

_ENDED = frozenset({RequestState.SUCCEEDED, RequestState.FAILED, RequestState.UNEXECUTED})

REQUEST_MOVES: MappingProxyType[RequestState, frozenset[RequestState]] = MappingProxyType(
    {
        RequestState.WAITING: _ENDED | {RequestState.RETRYING},
        RequestState.RETRYING: _ENDED | {RequestState.RETRYING},
        RequestState.SUCCEEDED: frozenset(),
        RequestState.FAILED: frozenset(),
        RequestState.UNEXECUTED: frozenset(),
    }
)

TERMINAL_JOB_STATES = frozenset(state for state, following in JOB_MOVES.items() if not following)
TERMINAL_CHUNK_STATES = frozenset(state for state, following in CHUNK_MOVES.items() if not following)
