"""What the routes need, and how they get it: `Context` is built by `api.app` and handed to them by FastAPI."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis as AsyncRedis

from core.job import DEFAULT_TENANT
from core.settings import Settings
from db.connection import Database
from db.files import FileStore
from tasks.messages import Messages


@dataclass(frozen=True, slots=True)
class Context:
    settings: Settings
    database: Database
    files: FileStore
    redis: AsyncRedis
    messages: Messages


def get_context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def get_tenant() -> str:
    """Whose rows a request may see. There is one tenant until there are keys."""
    return DEFAULT_TENANT


Ctx = Annotated[Context, Depends(get_context)]
Tenant = Annotated[str, Depends(get_tenant)]
