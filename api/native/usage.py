"""`/api/v1/usage`: what tenants, keys and models used, by day, and what that cost."""

from dataclasses import asdict, dataclass
from datetime import date
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.access.scopes import READ
from api.context import Ctx, Who
from core.access import Scope
from core.errors import Forbidden
from db.access import usage
from db.access.usage import Usage, UsageFilter

router = APIRouter(prefix="/api/v1", tags=["operations"])

SECONDS_PER_HOUR = 3600.0
MOST_LINES = 10_000

Group = Literal["tenant", "key", "model", "day"]


@dataclass(frozen=True, slots=True)
class UsageLine(Usage):
    """What it is not grouped by is null. device_seconds: of engines, each step shared by the tokens in it; of a job
    that has the device for itself, as long as it has it. cost: device_seconds at the price of
    `MILLRACE_DEVICE_HOUR_PRICE`, in its currency."""

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
    whatever crashed meanwhile. Requests that never began do not count; those that were given up count what they had
    used. Work that was lost and runs again is charged to nobody."""
    if all_tenants and Scope.ADMIN not in who.scopes:
        raise Forbidden("expected a key with the scope `admin` for the usage of all tenants")
    wanted = UsageFilter(
        tenant=None if all_tenants else who.tenant, model=model, key=key, first_day=first_day, last_day=last_day
    )
    with context.database.begin() as session:
        found = usage.read(session, wanted, group_by=group_by or ("day", "model"), limit=MOST_LINES)
    price = context.settings.device_hour_price / SECONDS_PER_HOUR
    return UsageList(data=[UsageLine(**asdict(one), cost=round(one.device_seconds * price, 6)) for one in found])
