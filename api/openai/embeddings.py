"""`/v1/embeddings`."""

from fastapi import APIRouter, Request, Response

from api.access.scopes import SUBMIT
from api.context import Ctx, Tenant
from api.contract.document import json_body
from api.idempotency import Once
from api.openai import online
from core.openai.embedding import EMBEDDINGS_ENDPOINT, EmbeddingBody

router = APIRouter(tags=["embeddings"])

_EXAMPLE = {"model": "all-minilm-l6-v2", "input": ["a millrace feeds the wheel", "a queue feeds a GPU"]}


@router.post(
    EMBEDDINGS_ENDPOINT, summary="Embed texts", openapi_extra=json_body(EmbeddingBody, _EXAMPLE), dependencies=[SUBMIT]
)
async def create_embeddings(context: Ctx, tenant: Tenant, request: Request, once: Once) -> Response:
    return await online.answer(context, tenant, request, EMBEDDINGS_ENDPOINT, once)
