"""What a worker and the database tell each other about a claimed chunk. Plain values; knows no SQL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping

from core.errors import LeaseLost

# What a claim returns: the fields of `Lease` but `lease_seconds`, of the updated `chunks AS c` and its `jobs`.
LEASE_COLUMNS = """c.id AS chunk_id, c.owner, c.attempt, c.job_id, jobs.public_id AS job_public_id, c.tenant,
    c.index AS chunk_index, c.first_request, c.num_requests, c.model, coalesce(jobs.endpoint, '') AS endpoint,
    c.num_crashes, c.suspect_request, c.suspect_crashes, c.crash_width, c.service_class"""


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed chunk: what to run and the token (owner, attempt) under which its outcomes are accepted."""

    chunk_id: int
    owner: str
    attempt: int
    job_id: int
    job_public_id: str
    tenant: str
    chunk_index: int
    first_request: int
    num_requests: int
    model: str
    endpoint: str
    num_crashes: int
    suspect_request: int | None
    suspect_crashes: int
    crash_width: int | None
    service_class: str
    lease_seconds: float

    def lost(self) -> LeaseLost:
        return LeaseLost(
            f"chunk {self.chunk_index} of {self.job_public_id} is no longer leased to {self.owner} (attempt "
            f"{self.attempt}): the lease expired and somebody else runs it; nothing of this attempt is written any more"
        )


@dataclass(frozen=True, slots=True)
class Request:
    """num_attempts: how often it failed in a way that another try might mend."""

    index: int
    body: bytes
    num_attempts: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """status_code 200 with a response body, another with OpenAI's error object; seconds are the engine's."""

    index: int
    status_code: int
    body: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0
    device_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Retry:
    """A request that failed, is worth another try, and waits for it so long."""

    index: int
    num_attempts: int
    code: str
    message: str
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Crash:
    """The engine died while `width` requests of the chunk were in flight; `suspect_request` if nothing but this one ran
    on the engine."""

    suspect_request: int | None
    width: int


@dataclass(frozen=True, slots=True)
class WriteResult:
    """is_done: every request of the chunk has its outcome. is_stopping: the job is being cancelled or has expired."""

    is_done: bool
    is_stopping: bool


def lease_of(row: RowMapping | Mapping[str, Any], lease_seconds: float) -> Lease:
    """`row`: has LEASE_COLUMNS, and what else the claim returned."""
    fields = {name: row[name] for name in Lease.__slots__ if name != "lease_seconds"}
    return Lease(**fields, lease_seconds=lease_seconds)
