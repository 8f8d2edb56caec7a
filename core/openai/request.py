"""A request of any endpoint that jobs have: its body checked, the model that it needs, its message to an engine."""

import msgspec

from core.errors import InvalidRequest
from core.openai import completion, embedding
from core.openai.completion import CompletionRequest
from core.openai.embedding import EMBEDDINGS_ENDPOINT, EmbeddingRequest
from core.protocol import EMBEDDER, GENERATOR, Embed, Generate

ENDPOINTS = (*completion.ENDPOINTS, EMBEDDINGS_ENDPOINT)

InferenceRequest = CompletionRequest | EmbeddingRequest


def parse_request(endpoint: str, body: bytes) -> InferenceRequest:
    """Raises InvalidRequest naming the field that is wrong, Unsupported for what is not offered."""
    if endpoint == EMBEDDINGS_ENDPOINT:
        return embedding.parse_body(body)
    if endpoint in completion.ENDPOINTS:
        return completion.parse_body(endpoint, body)
    raise InvalidRequest(
        f"expected an endpoint of {', '.join(ENDPOINTS)}, got {endpoint!r}", param="endpoint", code="invalid_endpoint"
    )


def to_message(
    request: InferenceRequest,
    request_id: str,
    *,
    priority: int,
    stream: bool = False,
    prefix_scope: str = "",
    is_alone: bool = False,
) -> Generate | Embed:
    """prefix_scope: whose prompts may share what was computed of them: a tenant.  is_alone: nothing else runs on the
    engine meanwhile."""
    message: Generate | Embed
    if isinstance(request, EmbeddingRequest):
        message = request.to_embed(request_id, priority=priority)
    else:
        message = request.to_generate(request_id, priority=priority, stream=stream, prefix_scope=prefix_scope)
    return msgspec.structs.replace(message, is_alone=True) if is_alone else message


def check_kind(endpoint: str, model: str, kind: str | None) -> None:
    """Raises InvalidRequest when a model of this kind has no such endpoint. None is not known yet: the engine says."""
    wants = EMBEDDER if endpoint == EMBEDDINGS_ENDPOINT else GENERATOR
    if kind == EMBEDDER and wants == GENERATOR:
        raise InvalidRequest(
            f"{model} is an embedding model: it embeds texts ({EMBEDDINGS_ENDPOINT}), it does not answer prompts",
            param="model",
            code="unsupported_model",
        )
    if kind == GENERATOR and wants == EMBEDDER:
        raise InvalidRequest(
            f"{model} answers prompts, it does not embed texts; ask an embedding model for embeddings",
            param="model",
            code="unsupported_model",
        )
