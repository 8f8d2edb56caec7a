"""`/healthz`: the process lives. `/readyz`: PostgreSQL and Redis answer, so requests can be taken."""

from typing import Any

from fastapi import APIRouter
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from api.context import Ctx
from core.errors import Unavailable

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Can requests be taken?")
async def readyz(context: Ctx) -> dict[str, Any]:
    """503 while PostgreSQL or Redis is away."""
    version = await run_in_threadpool(context.database.check)
    try:
        await context.redis.ping()
    except RedisError as error:
        raise Unavailable(f"Redis is away: {error}") from error
    return {"status": "ok", "postgresql": version}
