"""`/v1/embeddings`."""

from fastapi import APIRouter, Request, Response

from api.access.scopes import SUBMIT
from api.context import Ctx, Tenant
from api.idempotency import Once
from api.openai import online
from core.openai.embedding import EMBEDDINGS_ENDPOINT

router = APIRouter(tags=["embeddings"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["model", "input"]},
                "example": {
                    "model": "all-minilm-l6-v2",
                    "input": ["a wheel", "a mill"],
                },
            }
        },
    }
}


@router.post(EMBEDDINGS_ENDPOINT, summary="Embed texts", openapi_extra=_BODY, dependencies=[SUBMIT])
async def create_embeddings(context: Ctx, tenant: Tenant, request: Request, once: Once) -> Response:
    return await online.answer(context, tenant, request, EMBEDDINGS_ENDPOINT, once)
