"""`/v1/webhook_endpoints`: where a tenant wants to hear of its jobs, as OpenAI's client manages it, and what became of
the messages."""

from typing import Annotated, Any

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.access.scopes import READ, SUBMIT
from api.context import ADMIT_JOB, Context, Ctx, Tenant, page
from api.idempotency import Once
from core.errors import InvalidRequest
from core.webhooks import signature
from core.webhooks.addresses import check_url
from core.webhooks.events import EventType
from db import idempotency
from db.tables import WebhookDeliveryRow, WebhookEndpointRow
from db.webhooks import deliveries, endpoints
from db.webhooks.deliveries import Delivery, DeliveryState
from tasks.upkeep.outbound import SendingFailed
from tasks.upkeep.webhooks import send

router = APIRouter(prefix="/v1", tags=["webhooks"])

EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=len(EventType))]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]


class CreateEndpoint(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "nightly",
                "url": "https://example.com/webhooks",
                "event_types": ["batch.completed", "batch.failed"],
            }
        }
    )

    name: Name
    url: str
    event_types: EventTypes


class ChangeEndpoint(BaseModel):
    name: Name | None = None
    url: str | None = None
    event_types: EventTypes | None = None


class RotateSecret(BaseModel):
    keep_old_secret_active_for_24_hours: bool = False


class TestEndpoint(BaseModel):
    event_type: EventType


@router.get("/webhook_event_types", summary="List the events that webhooks tell of", dependencies=[READ])
def list_event_types() -> dict[str, Any]:
    return {"object": "list", "data": [kind.value for kind in EventType]}


@router.post("/webhook_endpoints", summary="Create a webhook endpoint", dependencies=[SUBMIT])
def create_endpoint(context: Ctx, tenant: Tenant, body: CreateEndpoint, once: Once) -> dict[str, Any]:
    """The answer alone shows the signing secret."""
    check_url(body.url, context.settings.allowed_webhook_networks)
    row = WebhookEndpointRow(
        id=endpoints.new_endpoint_id(),
        tenant=tenant,
        name=body.name,
        url=body.url,
        event_types=_values(body.event_types),
        secret=signature.new_secret(),
    )
    with context.database.begin() as session:
        earlier = idempotency.recall(session, once)
        if earlier is not None:
            return _with_secret(endpoints.find(session, earlier, tenant=tenant))
        idempotency.remember(session, once, row.id)
        return _with_secret(endpoints.add(session, row))


@router.get("/webhook_endpoints", summary="List webhook endpoints, newest first", dependencies=[READ])
def list_endpoints(
    context: Ctx, tenant: Tenant, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    with context.database.begin() as session:
        rows = endpoints.list_endpoints(session, tenant=tenant, after=after, limit=limit + 1)
    return page([endpoint_object(row) for row in rows], limit)


@router.get("/webhook_endpoints/{webhook_endpoint_id}", summary="Show a webhook endpoint", dependencies=[READ])
def get_endpoint(context: Ctx, tenant: Tenant, webhook_endpoint_id: str) -> dict[str, Any]:
    with context.database.begin() as session:
        return endpoint_object(endpoints.find(session, webhook_endpoint_id, tenant=tenant))


@router.post("/webhook_endpoints/{webhook_endpoint_id}", summary="Change a webhook endpoint", dependencies=[SUBMIT])
def change_endpoint(context: Ctx, tenant: Tenant, webhook_endpoint_id: str, body: ChangeEndpoint) -> dict[str, Any]:
    if body.url is not None:
        check_url(body.url, context.settings.allowed_webhook_networks)
    with context.database.begin() as session:
        row = endpoints.find(session, webhook_endpoint_id, tenant=tenant)
        row.name = row.name if body.name is None else body.name
        row.url = row.url if body.url is None else body.url
        row.event_types = row.event_types if body.event_types is None else _values(body.event_types)
        return endpoint_object(endpoints.change(session, row))


@router.delete("/webhook_endpoints/{webhook_endpoint_id}", summary="Delete a webhook endpoint", dependencies=[SUBMIT])
def delete_endpoint(context: Ctx, tenant: Tenant, webhook_endpoint_id: str) -> dict[str, Any]:
    """Messages that are on their way to it are given up."""
    with context.database.begin() as session:
        endpoints.remove(session, webhook_endpoint_id, tenant=tenant)
    return {"id": webhook_endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
    summary="Give a webhook endpoint a new signing secret",
    dependencies=[SUBMIT],
)
def rotate_secret(
    context: Ctx, tenant: Tenant, webhook_endpoint_id: str, body: RotateSecret | None = None
) -> dict[str, Any]:
    keeps_old = body is not None and body.keep_old_secret_active_for_24_hours
    with context.database.begin() as session:
        row = endpoints.find(session, webhook_endpoint_id, tenant=tenant)
        return _with_secret(endpoints.rotate_secret(session, row, keeps_old=keeps_old))


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/test",
    summary="Send a sample event to a webhook endpoint",
    dependencies=[SUBMIT, ADMIT_JOB],
)
async def test_endpoint(context: Ctx, tenant: Tenant, webhook_endpoint_id: str, body: TestEndpoint) -> dict[str, Any]:
    """Once, and soon: few are sent at the same time. 400 when there was no answer; the message says why."""
    row = await run_in_threadpool(_find, context, tenant, webhook_endpoint_id)
    sample = _sample(row, body.event_type)
    try:
        status = await to_thread.run_sync(send, context.settings, sample, limiter=context.test_senders)
    except SendingFailed as error:
        raise InvalidRequest(f"{row.url} did not answer: {error}", param="url", code="webhook_not_delivered") from error
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": row.id,
        "event_type": body.event_type.value,
        "status_code": status,
        "success": True,
    }


@router.get(
    "/webhook_endpoints/{webhook_endpoint_id}/deliveries",
    summary="List the messages to a webhook endpoint, newest first",
    dependencies=[READ],
)
def list_deliveries(
    context: Ctx, tenant: Tenant, webhook_endpoint_id: str, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """Not of OpenAI's: what arrived, what is tried again and when, what was given up and why."""
    with context.database.begin() as session:
        endpoints.find(session, webhook_endpoint_id, tenant=tenant)
        rows = deliveries.list_deliveries(session, webhook_endpoint_id, limit=limit + 1)
    return page([delivery_object(row) for row in rows], limit)


def _values(event_types: list[EventType]) -> list[str]:
    return sorted({kind.value for kind in event_types})


def _find(context: Context, tenant: str, webhook_endpoint_id: str) -> WebhookEndpointRow:
    with context.database.begin() as session:
        return endpoints.find(session, webhook_endpoint_id, tenant=tenant)


def _sample(row: WebhookEndpointRow, event_type: EventType) -> Delivery:
    event = {
        "id": "evt_test",
        "object": "event",
        "created_at": int(row.created_at.timestamp()),
        "type": event_type.value,
        "data": {"id": f"{event_type.partition('.')[0]}_test"},
    }
    return Delivery(0, 1, "wh_test", msgspec.json.encode(event).decode(), row.url, [row.secret])


def endpoint_object(row: WebhookEndpointRow) -> dict[str, Any]:
    """OpenAI's webhook endpoint."""
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": int(row.created_at.timestamp()),
        "updated_at": int(row.updated_at.timestamp()),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": signature.hint(row.secret),
    }


def _with_secret(row: WebhookEndpointRow) -> dict[str, Any]:
    return {**endpoint_object(row), "signing_secret": row.secret}


def delivery_object(row: WebhookDeliveryRow) -> dict[str, Any]:
    return {
        "id": row.webhook_id,
        "object": "webhook_delivery",
        "event_type": row.event_type,
        "state": row.state,
        "num_attempts": row.num_attempts,
        "last_status": row.last_status,
        "last_error": row.last_error,
        "created_at": int(row.created_at.timestamp()),
        "next_at": int(row.next_at.timestamp()) if row.state == DeliveryState.PENDING else None,
        "delivered_at": int(row.delivered_at.timestamp()) if row.delivered_at else None,
    }
