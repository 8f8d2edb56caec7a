"""`/api/v1/queues` and `/api/v1/nodes`: what waits and runs, and where."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from redis.exceptions import RedisError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.access.scopes import ADMIN, READ
from api.context import Context, Ctx, Tenant, Who
from core.access import Scope
from core.errors import Unavailable
from core.job import ServiceClass
from db.access import load
from db.access.load import Rate
from db.native import nodes, queues
from db.native.nodes import DeviceFigures
from db.native.queues import QueueFigures
from tasks.queues import inference_queue

router = APIRouter(prefix="/api/v1", tags=["operations"])


class Queue(BaseModel):
    """num_messages: wake-ups in Redis that no worker has taken, of everybody; null without the scope `admin`.
    oldest_age_seconds: of what waits. …_per_second: of the last minute, rows whatever came of them; null where nothing
    ended. estimated_wait_seconds: until what waits is answered at that rate; of online requests those of everybody, as
    a full queue tells it (`Retry-After`); null where nobody knows."""

    service_class: str
    model: str
    num_waiting_chunks: int
    num_running_chunks: int
    num_waiting_rows: int
    num_running_rows: int
    oldest_age_seconds: float | None
    is_paused: bool
    num_messages: int | None
    rows_per_second: float | None
    prompt_tokens_per_second: float | None
    completion_tokens_per_second: float | None
    estimated_wait_seconds: float | None


class QueueList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Queue]


class Device(BaseModel):
    """models: that it is to serve. statuses: of those that its engine knows, stats: the engine's, as the heartbeats of
    the protocol have them; both empty while the engine is silent."""

    name: str
    models: list[str]
    seen_at: datetime
    silent_seconds: float
    statuses: list[dict[str, Any]]
    stats: dict[str, Any]


class Node(BaseModel):
    name: str
    devices: list[Device]


class NodeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Node]


@router.get("/queues", summary="Show what waits and runs, for each model and class", dependencies=[READ])
async def list_queues(context: Ctx, who: Who) -> QueueList:
    """Of the tenant of the key; of all tenants together with the scope `admin`. Work that is no inference has the class
    `heavy`; its messages are in the queues of nodes, and not counted here."""
    is_for_all = Scope.ADMIN in who.scopes
    found = await run_in_threadpool(_look, context, None if is_for_all else who.tenant)
    if not is_for_all:
        return QueueList(data=found)
    depths = await _depths(context, [inference_queue(queue.service_class, queue.model) for queue in found])
    counted = zip(found, depths, strict=True)
    return QueueList(data=[queue.model_copy(update={"num_messages": depth}) for queue, depth in counted])


def _look(context: Context, tenant: str | None) -> list[Queue]:
    with context.database.begin() as session:
        return queue_objects(session, tenant=tenant, max_waiting=context.settings.max_waiting_requests)


def queue_objects(session: Session, *, tenant: str | None, max_waiting: int) -> list[Queue]:
    """Of a tenant, or of all. max_waiting: that are counted."""
    all_rates = load.rates(session)
    rates = all_rates if tenant is None else load.rates(session, tenant=tenant)
    found = []
    for figures in queues.figures(session, tenant=tenant):
        queue = (figures.service_class, figures.model)
        rate, num_waiting = rates.get(queue), figures.num_waiting_rows
        if figures.service_class == ServiceClass.ONLINE:  # whose turn it is does not depend on the tenant
            rate = all_rates.get(queue)
            num_waiting = load.num_waiting(session, figures.model, bound=max_waiting)
        found.append(_queue(figures, rates.get(queue), load.estimated_wait_seconds(num_waiting, rate)))
    return found


def _queue(figures: QueueFigures, rate: Rate | None, wait_seconds: float | None) -> Queue:
    return Queue(
        **asdict(figures),
        num_messages=None,
        rows_per_second=None if rate is None else round(rate.rows_per_second, 3),
        prompt_tokens_per_second=None if rate is None else round(rate.prompt_tokens_per_second, 3),
        completion_tokens_per_second=None if rate is None else round(rate.completion_tokens_per_second, 3),
        estimated_wait_seconds=None if wait_seconds is None else round(wait_seconds, 1),
    )


async def _depths(context: Context, names: Sequence[str]) -> Sequence[int]:
    """Raises Unavailable."""
    try:
        async with context.redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.llen(name)
            return [int(depth) for depth in await pipeline.execute()]
    except RedisError as error:
        raise Unavailable(f"Redis is away: {error}") from error


@router.get("/nodes", summary="Show the nodes, their devices and the models they serve", dependencies=[ADMIN])
def list_nodes(context: Ctx, tenant: Tenant) -> NodeList:
    with context.database.begin() as session:
        devices = nodes.list_devices(session)
    return NodeList(data=[Node(name=name, devices=list(map(_device, of))) for name, of in groupby(devices, _node)])


def _node(figures: DeviceFigures) -> str:
    return figures.node


def _device(figures: DeviceFigures) -> Device:
    return Device(
        name=figures.device,
        models=figures.models,
        seen_at=figures.seen_at,
        silent_seconds=figures.silent_seconds,
        statuses=figures.statuses,
        stats=figures.stats,
    )
