"""`/v1/responses`: create (now, in the background, or streamed), show, read on, cancel, delete, list the input."""

from typing import Annotated, Any, Literal

from anyio import CancelScope
from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from api.access.scopes import READ, SUBMIT
from api.access.visit import visit_of
from api.context import Context, Ctx, Tenant, page
from api.contract.document import json_body, or_events
from api.errors import error_response
from api.idempotency import Once
from api.openai.online import CLIENT_CLOSED_REQUEST, cancel, check_content_type, wait
from api.openai.responses.running import input_items, look, make, response_object
from api.openai.responses.streaming import ResponseStream
from api.streaming.leaving import unless_left
from api.streaming.narration import first_failure
from api.streaming.response import failed_response
from core.errors import InvalidRequest, NotFound
from core.job import JobState
from core.openai.responses.request import ResponseBody, parse_response_request
from db import jobs, responses
from db.responses import StoredResponse

router = APIRouter(prefix="/v1/responses", tags=["responses"])

_EXAMPLE = {"model": "millrace/tiny", "input": "What is a list?", "background": True}


@router.post(
    "",
    summary="Create a response",
    openapi_extra=json_body(ResponseBody, _EXAMPLE),
    responses=or_events("The response"),
    dependencies=[SUBMIT],
)
async def create_response(context: Ctx, request: Request, once: Once) -> Response:
    """With `background` it comes back at once, `queued`, and is made by and by. With `stream` it is told in events."""
    check_content_type(request)
    parsed = await run_in_threadpool(parse_response_request, await request.body())
    await context.broker.check()
    made = await run_in_threadpool(make, context, visit_of(request), parsed, once)
    found = made.response
    if made.is_new:
        await run_in_threadpool(context.broker.wake_up, found.job)
    goes_on = parsed.is_background or once is not None
    if parsed.is_streamed:
        return _stream(context, found, None, goes_on=goes_on)
    if parsed.is_background:
        return JSONResponse(response_object(found))
    return await _whole(context, request, found, goes_on=goes_on)


def _stream(context: Context, found: StoredResponse, starting_after: int | None, *, goes_on: bool) -> ResponseStream:
    async def left() -> None:
        if not goes_on:
            await run_in_threadpool(cancel, context, found.job)

    return ResponseStream(context, found, starting_after, left)


async def _whole(context: Context, request: Request, found: StoredResponse, *, goes_on: bool) -> Response:
    ended, is_over = None, False
    try:
        ended = await unless_left(request.receive, lambda: wait(context, found.job))
        is_over = ended is not None or goes_on
    finally:
        if not is_over:  # nobody waits any more, whatever the reason
            with CancelScope(shield=True):
                await run_in_threadpool(cancel, context, found.job)
    if ended is None:
        return error_response(CLIENT_CLOSED_REQUEST, "client_closed_request", "the client closed the connection")
    failure = first_failure(ended.outcomes)
    if failure is not None:
        return failed_response(failure)
    row = found.row
    return JSONResponse(response_object(await run_in_threadpool(look, context, row.tenant, row.id, is_stored=False)))


@router.get(
    "/{response_id}",
    summary="Show a response, or read on in its events",
    responses=or_events("The response"),
    dependencies=[READ],
)
def get_response(
    context: Ctx,
    tenant: Tenant,
    response_id: str,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """With `stream` the events of a response that was created with it, those behind the number `starting_after`."""
    found = look(context, tenant, response_id)
    if not stream:
        if starting_after is not None:
            raise InvalidRequest("starting_after: expected stream=true beside it", param="starting_after")
        return JSONResponse(response_object(found))
    if not found.row.is_streamed:
        raise InvalidRequest("stream: expected a response that was created with stream=true", param="stream")
    return _stream(context, found, starting_after, goes_on=True)


@router.post("/{response_id}/cancel", summary="Cancel a response in the background", dependencies=[SUBMIT])
def cancel_response(context: Ctx, tenant: Tenant, response_id: str) -> dict[str, Any]:
    """A second time changes nothing, nor does it after the end."""
    found = look(context, tenant, response_id)
    if not response_object(found)["background"]:
        raise InvalidRequest("expected a response that was created with background=true", param="background")
    cancel(context, found.job)
    return response_object(look(context, tenant, response_id))


@router.delete("/{response_id}", summary="Delete a response", dependencies=[SUBMIT])
def delete_response(context: Ctx, tenant: Tenant, response_id: str) -> dict[str, Any]:
    """One that is being made is given up. What continued it can be continued no more."""
    found = look(context, tenant, response_id)
    with context.database.begin() as session:
        is_stopping = jobs.stop(session, found.job, JobState.CANCELLED)
        progress = jobs.progress(session, [found.job.id]).get(found.job.id)
        responses.remove(session, [response_id])
    if is_stopping:
        context.broker.end_if_idle(found.job, progress)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/{response_id}/input_items", summary="List the input of a response", dependencies=[READ])
def list_input_items(
    context: Ctx,
    tenant: Tenant,
    response_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    items = input_items(look(context, tenant, response_id).row)
    if order == "desc":
        items.reverse()
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise NotFound(f"no item with id {after!r} in this response", param="after")
        items = items[places[0] + 1 :]
    return page(items[: limit + 1], limit)
