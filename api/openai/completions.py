"""`/v1/chat/completions` and `/v1/completions`."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from api.access.scopes import READ, SUBMIT
from api.context import Ctx, Tenant, Who
from api.contract.document import events, json_body, or_events
from api.idempotency import Once
from api.openai import online
from api.openai.resuming import resume
from core.openai.completion import CHAT_ENDPOINT, TEXT_ENDPOINT, body_type

router = APIRouter(tags=["completions"])

_CONVERSATION = {"model": "millrace/tiny", "messages": [{"role": "user", "content": "What is a list?"}]}
_TEXT = {"model": "millrace/tiny", "prompt": "A list is", "max_tokens": 16}


@router.post(
    CHAT_ENDPOINT,
    summary="Answer a conversation",
    openapi_extra=json_body(body_type(CHAT_ENDPOINT), _CONVERSATION),
    responses=or_events("The answer"),
    dependencies=[SUBMIT],
)
async def create_chat_completion(context: Ctx, tenant: Tenant, request: Request, once: Once) -> Response:
    return await online.answer(context, tenant, request, CHAT_ENDPOINT, once)


@router.post(
    TEXT_ENDPOINT,
    summary="Continue a text",
    openapi_extra=json_body(body_type(TEXT_ENDPOINT), _TEXT),
    responses=or_events("The answer"),
    dependencies=[SUBMIT],
)
async def create_completion(context: Ctx, tenant: Tenant, request: Request, once: Once) -> Response:
    return await online.answer(context, tenant, request, TEXT_ENDPOINT, once)


@router.get(
    f"{CHAT_ENDPOINT}/{{answer_id}}/events",
    summary="Read on in a streamed conversation",
    responses=events("The rest of the answer"),
    response_class=StreamingResponse,
    dependencies=[READ],
)
async def resume_chat_completion(context: Ctx, who: Who, request: Request, answer_id: str) -> Response:
    """The events behind the one that the header `Last-Event-ID` (or the parameter `last_event_id`) names; all of them
    without it. `answer_id` stands in every chunk."""
    return await resume(context, who, request, CHAT_ENDPOINT, answer_id)


@router.get(
    f"{TEXT_ENDPOINT}/{{answer_id}}/events",
    summary="Read on in a streamed text",
    responses=events("The rest of the answer"),
    response_class=StreamingResponse,
    dependencies=[READ],
)
async def resume_completion(context: Ctx, who: Who, request: Request, answer_id: str) -> Response:
    """As for conversations."""
    return await resume(context, who, request, TEXT_ENDPOINT, answer_id)
