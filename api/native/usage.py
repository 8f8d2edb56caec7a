"""`/api/v1/usage`: what tenants, keys and models used, by day, and what that cost."""

from datetime import date
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.access.scopes import READ
from api.context import Ctx, Who
from core.access import Scope
from core.errors import Forbidden
from db.access import usage
from db.access.usage import UsageFilter

router = APIRouter(prefix="/api/v1", tags=["operations"])

SECONDS_PER_HOUR = 3600.0
MOST_LINES = 10_000

Group = Literal["tenant", "key", "model", "day"]


class UsageLine(BaseModel):
    """What it is not grouped by is null. device_seconds: of engines; each step is shared by the tokens in it. cost:
    device_seconds at the price of `MILLRACE_DEVICE_HOUR_PRICE`, in its currency."""

    tenant: str | None
    key: str | None
    model: str | None
    day: date | None
    num_requests: int
    num_failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    device_seconds: float
    cost: float


class UsageList(BaseModel):
    object: Literal["list"] = "list"
    data: list[UsageLine]


@router.get("/usage", summary="Show what was used, by tenant, key, model and day", dependencies=[READ])
def get_usage(
    context: Ctx,
    who: Who,
    group_by: Annotated[list[Group] | None, Query(description="Any of them; `day` and `model` otherwise.")] = None,
    model: str | None = None,
    key: Annotated[str | None, Query(description="The id of a key.")] = None,
    first_day: date | None = None,
    last_day: date | None = None,
    all_tenants: Annotated[bool, Query(description="Needs the scope `admin`.")] = False,
) -> UsageList:
    """Days are those of UTC, on which outcomes were written, both ends included. Exact: every outcome counts once,
    whatever crashed meanwhile; requests that never ran do not count."""
    if all_tenants and Scope.ADMIN not in who.scopes:
        raise Forbidden("expected a key with the scope `admin` for the usage of all tenants")
    wanted = UsageFilter(
        tenant=None if all_tenants else who.tenant, model=model, key=key, first_day=first_day, last_day=last_day
    )
    with context.database.begin() as session:
        found = usage.read(session, wanted, group_by=group_by or ("day", "model"), limit=MOST_LINES)
    price = context.settings.device_hour_price / SECONDS_PER_HOUR
    lines = [
        UsageLine(
            tenant=one.tenant,
            key=one.key,
            model=one.model,
            day=one.day,
            num_requests=one.num_requests,
            num_failed=one.num_failed,
            prompt_tokens=one.prompt_tokens,
            cached_tokens=one.cached_tokens,
            completion_tokens=one.completion_tokens,
            device_seconds=round(one.device_seconds, 3),
            cost=round(one.device_seconds * price, 6),
        )
        for one in found
    ]
    return UsageList(data=lines)
