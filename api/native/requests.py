"""`/api/v1/jobs/{id}/requests`: how each request of a job stands, how often it was tried, and its last error."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.access.scopes import READ
from api.context import Ctx, Tenant
from core.job import RequestState
from db import jobs
from db.native import requests
from db.native.requests import RequestLine

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

PAGE_REQUESTS, MOST_REQUESTS = 100, 1000


class LastError(BaseModel):
    code: str
    message: str


class RequestStanding(BaseModel):
    """attempt: of its chunk, under which its outcome was written. num_retries: tries that failed and were followed by
    another one; last_error: the last one's. retry_at: when the next try is due."""

    index: int
    custom_id: str
    state: RequestState
    status_code: int | None
    attempt: int | None
    num_retries: int
    last_error: LastError | None
    retry_at: datetime | None


class RequestPage(BaseModel):
    """next_after: what `after` must be for the next page; null where there is none."""

    object: Literal["list"] = "list"
    data: list[RequestStanding]
    next_after: int | None


@router.get("/{job_id}/requests", summary="How each request of a job stands", dependencies=[READ])
def list_requests(
    context: Ctx,
    tenant: Tenant,
    job_id: str,
    state: RequestState | None = None,
    after: Annotated[int, Query(ge=-1, le=2**31 - 1)] = -1,
    limit: Annotated[int, Query(ge=1, le=MOST_REQUESTS)] = PAGE_REQUESTS,
) -> RequestPage:
    """In order, page by page, all or those in one state; for the answers themselves see `/results`."""
    with context.database.begin() as session:
        job = jobs.find(session, job_id, tenant=tenant)
        found = requests.list_requests(session, job, state=state, after=after, limit=limit + 1)
    page = found[:limit]
    return RequestPage(
        data=[_standing(line) for line in page], next_after=page[-1].index if len(found) > limit else None
    )


def _standing(line: RequestLine) -> RequestStanding:
    error = None
    if line.error_code is not None:
        error = LastError(code=line.error_code, message=line.error_message or "")
    return RequestStanding(
        index=line.index,
        custom_id=line.custom_id,
        state=line.state,
        status_code=line.status_code,
        attempt=line.attempt,
        num_retries=line.num_retries,
        last_error=error,
        retry_at=line.retry_at,
    )
