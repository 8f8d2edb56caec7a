"""`/healthz`, and `/health` as vLLM has it: the process lives. `/readyz`: PostgreSQL and Redis answer, so requests can
be taken."""

import logging

from fastapi import APIRouter
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from api.access.scopes import PUBLIC
from api.context import Ctx
from core.errors import Unavailable

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?", dependencies=[PUBLIC])
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/health", summary="Is the process alive? As vLLM is asked", dependencies=[PUBLIC])
async def health() -> dict[str, str]:
    """guidellm and others look here before they begin."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can requests be taken?", dependencies=[PUBLIC])
async def readyz(context: Ctx) -> dict[str, str]:
    """503 while PostgreSQL or Redis is away. Strangers may ask, so nothing is told of either; the log has it."""
    try:
        await run_in_threadpool(context.database.check)
    except Unavailable as error:
        logger.warning("not ready: %s", error.message)
        raise Unavailable("PostgreSQL is away") from error
    try:
        await context.redis.ping()
    except RedisError as error:
        logger.warning("not ready: Redis is away: %s", error)
        raise Unavailable("Redis is away") from error
    return {"status": "ok"}
