"""The outbox: messages are written in the transaction of the event they tell of, and taken by whoever delivers them.

Taking a message puts its next try off and counts the attempt, so a deliverer that dies has only delayed it; two at once
take different ones. A message arrives at least once, under the same `webhook_id` every time.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import exists, select, text
from sqlalchemy.orm import Session

from core.webhooks.events import EventType
from db.tables import JobRow, ResponseRow, WebhookDeliveryRow, WebhookEndpointRow


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that is to be sent now. `signers`: the secrets that sign it. `attempt` is counted from 1."""

    id: int
    attempt: int
    webhook_id: str
    payload: str
    url: str
    signers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Trial:
    """How a try went. `status`: of the answer, if there was one. `delay`: until the next try, should there be one."""

    state: DeliveryState
    status: int | None
    error: str | None
    delay: timedelta


_ANNOUNCE = text("""
INSERT INTO webhook_deliveries (webhook_id, endpoint_id, event_type, payload)
SELECT 'wh_' || replace(gen_random_uuid()::text, '-', ''), e.id, :event_type, json_build_object(
    'id', CAST(:event_id AS text), 'object', 'event', 'created_at', extract(epoch FROM now())::bigint,
    'type', CAST(:event_type AS text), 'data', json_build_object('id', CAST(:object_id AS text)))::text
FROM webhook_endpoints e WHERE e.tenant = :tenant AND :event_type = ANY(e.event_types)
""")

# Few of each endpoint, so that one that does not answer does not hold up the others.
_TAKE = text("""
WITH due AS (
    SELECT picked.id FROM (SELECT id FROM webhook_endpoints ORDER BY random()) AS e
    CROSS JOIN LATERAL (
        SELECT d.id FROM webhook_deliveries d
        WHERE d.endpoint_id = e.id AND d.state = 'pending' AND d.next_at <= clock_timestamp()
        ORDER BY d.next_at LIMIT :each FOR UPDATE SKIP LOCKED) AS picked
    LIMIT :limit
)
UPDATE webhook_deliveries AS d SET num_attempts = d.num_attempts + 1, next_at = clock_timestamp() + :pause
FROM due, webhook_endpoints e WHERE d.id = due.id AND e.id = d.endpoint_id
RETURNING d.id, d.num_attempts, d.webhook_id, d.payload, e.url, array_remove(ARRAY[e.secret,
    CASE WHEN e.old_secret_until > now() THEN e.old_secret END], NULL)
""")

_SETTLE = text("""
UPDATE webhook_deliveries SET state = :state, last_status = :status, last_error = :error,
    next_at = clock_timestamp() + :delay,
    delivered_at = CASE WHEN :state = 'delivered' THEN clock_timestamp() END
WHERE id = :id AND num_attempts = :attempt AND state = 'pending'
""")


def announce(session: Session, tenant: str, event: EventType, object_id: str) -> bool:
    """Leaves a message for every endpoint of the tenant that asked for such events; True when there is one."""
    values = {
        "tenant": tenant,
        "event_type": event.value,
        "event_id": f"evt_{secrets.token_hex(12)}",
        "object_id": object_id,
    }
    return session.execute(_ANNOUNCE, values).rowcount > 0  # type: ignore[attr-defined, no-any-return]


def awaited_response(session: Session, job: JobRow) -> ResponseRow | None:
    """The stored response that the job makes, when its tenant has any endpoint at all."""
    has_endpoint = exists().where(WebhookEndpointRow.tenant == ResponseRow.tenant)
    return session.scalar(select(ResponseRow).where(ResponseRow.job_id == job.id, ResponseRow.is_stored, has_endpoint))


def take(session: Session, *, each: int, limit: int, pause: timedelta) -> list[Delivery]:
    """Messages that are due: `each` of an endpoint at most. `pause`: when another may try, should this one die."""
    rows = session.execute(_TAKE, {"each": each, "limit": limit, "pause": pause})
    return [Delivery(*row) for row in rows]


def settle(session: Session, delivery: Delivery, trial: Trial) -> None:
    """Does nothing when somebody else has tried since."""
    session.execute(
        _SETTLE,
        {
            "id": delivery.id,
            "attempt": delivery.attempt,
            "state": trial.state.value,
            "status": trial.status,
            "error": trial.error,
            "delay": trial.delay,
        },
    )


def list_deliveries(session: Session, endpoint_id: str, *, limit: int) -> Sequence[WebhookDeliveryRow]:
    """Newest first."""
    query = select(WebhookDeliveryRow).where(WebhookDeliveryRow.endpoint_id == endpoint_id)
    return session.scalars(query.order_by(WebhookDeliveryRow.id.desc()).limit(limit)).all()
