"""The tables. Requests are written once and never updated; outcomes are appended, one per request by primary key;
what changes while a job runs are its few chunks. Times are the database's (`timestamptz`).
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.job import DEFAULT_TENANT
from db.tables.base import Row as Row
from db.tables.native import ArtifactRow as ArtifactRow
from db.tables.native import DeviceRow as DeviceRow
from db.tables.native import HeavyJobRow as HeavyJobRow
from db.tables.usage import UsageDayRow as UsageDayRow
from db.tables.usage import UsageEntryRow as UsageEntryRow
from db.tables.webhooks import WebhookDeliveryRow as WebhookDeliveryRow
from db.tables.webhooks import WebhookEndpointRow as WebhookEndpointRow


class FileRow(Row):
    """A file somebody uploaded or a job wrote; its bytes are in the file store."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    purpose: Mapped[str]
    filename: Mapped[str]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_files_tenant_created_at", "tenant", "created_at"),
        Index("ix_files_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    )


class FileBlockRow(Row):
    """A piece of a file that is kept in PostgreSQL. No foreign key: bytes come before the row that names them."""

    __tablename__ = "file_blocks"

    file_id: Mapped[str] = mapped_column(primary_key=True)
    index: Mapped[int] = mapped_column(Integer, primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IdempotencyKeyRow(Row):
    """A call that carried an Idempotency-Key, and what it made."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[bytes] = mapped_column(LargeBinary)
    object_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)


class ModelRow(Row):
    """A model by the name that requests use. `kind`: what engines report of it; NULL while none has loaded it."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str]
    kind: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PlacementRow(Row):
    """The fact that the engine of a device serves a model; written by the agent of its node. `source`: the directory or
    hub name that it loads there, NULL where the agent is of a release that did not say."""

    __tablename__ = "placements"

    node: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    source: Mapped[str | None]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKeyRow(Row):
    """A key by its hash; the key itself is nowhere. `prefix`: its beginning, by which people know it again.
    Limits that are NULL do not limit."""

    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    public_id: Mapped[str] = mapped_column(unique=True)
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    name: Mapped[str]
    prefix: Mapped[str]
    hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    max_priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("9"))
    requests_per_minute: Mapped[int | None] = mapped_column(Integer)
    tokens_per_minute: Mapped[int | None] = mapped_column(Integer)
    concurrent_jobs: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class TenantLimitRow(Row):
    """What all keys of a tenant may use together. Limits that are NULL do not limit; no row limits nothing."""

    __tablename__ = "tenant_limits"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    requests_per_minute: Mapped[int | None] = mapped_column(Integer)
    tokens_per_minute: Mapped[int | None] = mapped_column(Integer)
    concurrent_jobs: Mapped[int | None] = mapped_column(Integer)


class JobRow(Row):
    """What a user submitted, with the key `key_id` where there was one. `ending` says how a job that is being stopped
    will end (`completed`, `cancelled`, `expired`); the counters are final once it has ended, while it runs the
    chunks hold them. `look_at` is when the reconciler looks at it, unless it has ended."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    public_id: Mapped[str] = mapped_column(unique=True)
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    key_id: Mapped[int | None] = mapped_column(BigInteger)
    kind: Mapped[str]
    service_class: Mapped[str]
    state: Mapped[str]
    ending: Mapped[str | None]
    endpoint: Mapped[str | None]
    model: Mapped[str | None]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("5"))
    input_file_id: Mapped[str | None]
    output_file_id: Mapped[str | None]
    error_file_id: Mapped[str | None]
    completion_window: Mapped[str | None]
    output_expires_after_seconds: Mapped[int | None]
    errors: Mapped[dict[str, Any] | None]
    user_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    num_requests: Mapped[int] = mapped_column(server_default=text("0"))
    num_completed: Mapped[int] = mapped_column(server_default=text("0"))
    num_failed: Mapped[int] = mapped_column(server_default=text("0"))
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    in_progress_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    look_at: Mapped[datetime] = mapped_column(server_default=text("now() + interval '10 seconds'"))

    __table_args__ = (
        Index("ix_jobs_tenant_id", "tenant", "id"),
        Index("ix_jobs_service_class_created_at", "service_class", "created_at"),
        Index(
            "ix_jobs_look_at",
            "look_at",
            postgresql_where=text("state IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
        ),
        Index(
            "ix_jobs_expires_at",
            "expires_at",
            postgresql_where=text("state = 'in_progress' AND ending IS NULL"),
        ),
        {"postgresql_with": {"fillfactor": "80"}},
    )


class RequestRow(Row):
    """One row of an inference job. `body` is the JSON text as it came. No foreign key, here and in outcomes: a check
    per row would cost as much as the row, and both are written only under a locked job or chunk."""

    __tablename__ = "requests"

    job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    custom_id: Mapped[str]
    body: Mapped[str]


class ChunkRow(Row):
    """A run of consecutive requests of a job. `attempt` is the fencing token: it rises with every claim.
    `num_handed_back` counts claims that ended by a shutdown and so are no attempts; `num_crashes` those during which
    the engine died, and `suspect_crashes` how often in a row it died while `suspect_request` alone was running.
    `crash_width`: the engine died while so many of the first unfinished requests were in flight, and since then they
    have not run through; NULL: none is suspected.
    `tenant` is the job's, `cost_tokens` the answer tokens that its requests ask for at most; `available_at` is when
    the first of the requests that a waiting chunk is put aside for may be tried again; NULL: it may be claimed now.
    `charged_priority`: at which the first claim was charged; NULL: at the one that the chunk has now.
    `look_at`: the chunk has ended, and then the reconciler looks whether its job has with it; NULL: there is nothing to
    look at."""

    __tablename__ = "chunks"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    index: Mapped[int]
    first_request: Mapped[int]
    num_requests: Mapped[int]
    model: Mapped[str]
    service_class: Mapped[str]
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    priority: Mapped[int] = mapped_column(SmallInteger)
    cost_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    charged_priority: Mapped[int | None] = mapped_column(SmallInteger)
    state: Mapped[str]
    available_at: Mapped[datetime | None]
    owner: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    num_handed_back: Mapped[int] = mapped_column(server_default=text("0"))
    num_crashes: Mapped[int] = mapped_column(server_default=text("0"))
    suspect_request: Mapped[int | None]
    suspect_crashes: Mapped[int] = mapped_column(server_default=text("0"))
    crash_width: Mapped[int | None]
    lease_until: Mapped[datetime | None]
    look_at: Mapped[datetime | None]
    num_completed: Mapped[int] = mapped_column(server_default=text("0"))
    num_failed: Mapped[int] = mapped_column(server_default=text("0"))
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))

    __table_args__ = (
        Index("uq_chunks_job_id_index", "job_id", "index", unique=True),
        Index(
            "ix_chunks_waiting",
            "service_class",
            "model",
            text("priority DESC"),
            "id",
            postgresql_where=text("state = 'waiting'"),
        ),
        Index(
            "ix_chunks_waiting_tenant",
            "service_class",
            "model",
            "priority",
            "tenant",
            "id",
            postgresql_where=text("state = 'waiting' AND available_at IS NULL"),
        ),
        Index("ix_chunks_running", "id", postgresql_where=text("state = 'running'")),
        Index(
            "ix_chunks_delayed",
            "available_at",
            postgresql_where=text("state = 'waiting' AND available_at IS NOT NULL"),
        ),
        Index("ix_chunks_look_at", "look_at", postgresql_where=text("look_at IS NOT NULL")),
        {"postgresql_with": {"fillfactor": "70"}},
    )


class TenantShareRow(Row):
    """How many answer tokens a tenant was given among those that wait for the same model at the same priority: the
    virtual time of start-time fair queueing. `started_tokens` is what it was when the last claim was made,
    less what chunks that ran then did not take."""

    __tablename__ = "tenant_shares"

    service_class: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    priority: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(primary_key=True)
    used_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    started_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    used_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)


class PauseRow(Row):
    """Nothing new is claimed of this model in this queue; `*` is every model, or every queue."""

    __tablename__ = "pauses"

    service_class: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    paused_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RetryRow(Row):
    """A request that failed in a way that another try may mend: how often, how last, and when it runs again. It stays
    when the request has its outcome, so that its attempts can be read."""

    __tablename__ = "retries"

    job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    num_attempts: Mapped[int]
    code: Mapped[str]
    message: Mapped[str]
    retry_at: Mapped[datetime]


class OutcomeRow(Row):
    """The one answer to a request. `status_code` 200: `body` is the response; another: `body` is OpenAI's error
    object; NULL: it never ran, `body` is `{code, message}`. `attempt`: that of the chunk when it was written, 0 where
    it never ran. Seconds are the engine's, from arrival there."""

    __tablename__ = "outcomes"

    job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    status_code: Mapped[int | None] = mapped_column(SmallInteger)
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    body: Mapped[str]
    prompt_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    completion_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    cached_tokens: Mapped[int] = mapped_column(server_default=text("0"))
    queue_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    first_token_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    total_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    device_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    finished_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ResponseRow(Row):
    """A response of OpenAI's Responses API: the job that makes it, the items that were sent, and the fields of the
    response that repeat the request. `is_stored` false: it can be seen by nobody but the call that made it."""

    __tablename__ = "responses"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(server_default=DEFAULT_TENANT)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    previous_id: Mapped[str | None]
    is_stored: Mapped[bool]
    has_tools: Mapped[bool]
    is_streamed: Mapped[bool]
    items: Mapped[str]
    echo: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_responses_job_id", "job_id"),)
