"""What the routes share: the `Context` that `api.app` builds and FastAPI hands to them, who asks, whose rows a request
may see, and the shape of a page of a list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Request
from redis.asyncio import Redis as AsyncRedis

from api.access.admission import Admission
from api.access.keyring import KeyRing
from api.access.scopes import get_identity
from api.access.visit import Visit, visit_of
from api.broker import Broker
from api.codecs import Codecs
from api.openai.intake import Intake
from api.openai.served import Served
from api.streaming.ends import Ends
from core.access import Identity
from core.settings import Settings
from db.connection import Database
from db.files import FileStore
from tasks.messages import Messages


@dataclass(frozen=True, slots=True)
class Context:
    """test_senders: of messages to users' servers, who may keep a thread waiting for as long as they like.
    body_readers: of large bodies, each of which takes the time of whoever streams."""

    settings: Settings
    database: Database
    files: FileStore
    redis: AsyncRedis
    messages: Messages
    keys: KeyRing
    admission: Admission
    codecs: Codecs
    broker: Broker
    served: Served
    ends: Ends
    intake: Intake
    test_senders: CapacityLimiter
    body_readers: CapacityLimiter


async def get_context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


async def get_tenant(identity: Annotated[Identity, Depends(get_identity)]) -> str:
    """Whose rows a request may see."""
    return identity.tenant


async def get_visit(request: Request) -> Visit:
    return visit_of(request)


Ctx = Annotated[Context, Depends(get_context)]
Who = Annotated[Identity, Depends(get_identity)]
Tenant = Annotated[str, Depends(get_tenant)]
Visitor = Annotated[Visit, Depends(get_visit)]


def admit_job(context: Ctx, visit: Visitor) -> None:
    """For routes that make jobs nobody waits for, or work of another kind. Where they make jobs, they `check_jobs`.
    Raises RateLimited."""
    context.admission.take_request(visit)


ADMIT_JOB = Depends(admit_job)


def page(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """As OpenAI writes it. `found`: objects with an `id`, one more than `limit` where there is another page."""
    data = list(found[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
