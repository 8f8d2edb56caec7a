"""The endpoints of a tenant: making, reading, changing, removing."""

import secrets
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, literal, select, tuple_
from sqlalchemy.orm import Session

from core.errors import Conflict, NotFound
from core.webhooks.signature import new_secret
from db.tables import WebhookEndpointRow

MAX_ENDPOINTS = 50
OLD_SECRET_LIFETIME = timedelta(hours=24)


def new_endpoint_id() -> str:
    return f"whe_{secrets.token_hex(12)}"


def add(session: Session, endpoint: WebhookEndpointRow) -> WebhookEndpointRow:
    """Raises Conflict when the tenant has as many as it may have."""
    held = session.scalar(
        select(func.count()).select_from(WebhookEndpointRow).where(WebhookEndpointRow.tenant == endpoint.tenant)
    )
    if (held or 0) >= MAX_ENDPOINTS:
        raise Conflict(f"expected at most {MAX_ENDPOINTS} webhook endpoints; delete one that is not needed")
    session.add(endpoint)
    session.flush()
    session.refresh(endpoint)
    return endpoint


def find(session: Session, endpoint_id: str, *, tenant: str) -> WebhookEndpointRow:
    """Raises NotFound when this tenant has no such endpoint."""
    query = select(WebhookEndpointRow).where(WebhookEndpointRow.id == endpoint_id, WebhookEndpointRow.tenant == tenant)
    endpoint = session.scalar(query)
    if endpoint is None:
        raise NotFound(f"no webhook endpoint with id {endpoint_id!r}", param="webhook_endpoint_id")
    return endpoint


def list_endpoints(session: Session, *, tenant: str, after: str | None, limit: int) -> Sequence[WebhookEndpointRow]:
    """Newest first. Raises NotFound for an unknown `after`."""
    query = select(WebhookEndpointRow).where(WebhookEndpointRow.tenant == tenant)
    position = tuple_(WebhookEndpointRow.created_at, WebhookEndpointRow.id)
    if after is not None:
        last = find(session, after, tenant=tenant)
        query = query.where(position < tuple_(literal(last.created_at), literal(last.id)))
    newest = query.order_by(WebhookEndpointRow.created_at.desc(), WebhookEndpointRow.id.desc())
    return session.scalars(newest.limit(limit)).all()


def change(session: Session, endpoint: WebhookEndpointRow) -> WebhookEndpointRow:
    """Writes the changed fields of a row of this session, and when that was."""
    if session.is_modified(endpoint):
        endpoint.updated_at = func.now()
    session.flush()
    session.refresh(endpoint)
    return endpoint


def rotate_secret(session: Session, endpoint: WebhookEndpointRow, *, keeps_old: bool) -> WebhookEndpointRow:
    """`keeps_old`: the secret until now signs too for another day."""
    endpoint.old_secret = endpoint.secret if keeps_old else None
    endpoint.old_secret_until = func.now() + OLD_SECRET_LIFETIME if keeps_old else None
    endpoint.secret = new_secret()
    return change(session, endpoint)


def remove(session: Session, endpoint_id: str, *, tenant: str) -> None:
    """What was on its way to it goes too. Raises NotFound when this tenant has no such endpoint."""
    session.delete(find(session, endpoint_id, tenant=tenant))
