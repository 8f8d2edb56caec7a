"""OpenAI's embeddings: what a body asks for, checked, and the answer. Lengths in tokens are for the engine to check.

An input is one text, a list of texts, one list of token ids, or a list of such lists.
"""

import base64
import struct
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest
from core.openai.completion import Positive, StreamOptions, TokenId
from core.openai.decoding import decode
from core.protocol import Embed, Embedded

EMBEDDINGS_ENDPOINT = "/v1/embeddings"
MAX_INPUTS = 2048  # of one request, as OpenAI has it

EncodingFormat = Literal["float", "base64"]


class _Format(msgspec.Struct):
    encoding_format: EncodingFormat | None = None


class EmbeddingBody(_Format, kw_only=True, forbid_unknown_fields=True):
    """`user` and vLLM's fields that change nothing about the answer are accepted; what is unknown is refused."""

    model: Annotated[str, Meta(min_length=1)]
    input: str | list[str | TokenId | list[TokenId]]
    dimensions: Positive | None = None
    user: Any = None
    request_id: Any = None
    cache_salt: Any = None


_decoder = msgspec.json.Decoder(EmbeddingBody)
_format_decoder = msgspec.json.Decoder(_Format)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A checked request; exactly one of `texts` and `token_ids` is set."""

    model: str
    texts: list[str] | None
    token_ids: list[list[int]] | None
    dimensions: int | None
    streaming: StreamOptions | None = None  # never

    def to_embed(self, request_id: str, *, priority: int) -> Embed:
        return Embed(request_id, self.model, self.texts, self.token_ids, self.dimensions, priority)


def parse_body(body: bytes) -> EmbeddingRequest:
    """Raises InvalidRequest naming the field that is wrong."""
    parsed = decode(_decoder, body)
    texts, token_ids = _inputs(parsed.input)
    _check_inputs(texts or token_ids or [])
    return EmbeddingRequest(parsed.model, texts, token_ids, parsed.dimensions)


def _inputs(given: str | list[str | int | list[int]]) -> tuple[list[str] | None, list[list[int]] | None]:
    if isinstance(given, str):
        return [given], None
    texts = [item for item in given if isinstance(item, str)]
    token_ids = [item for item in given if isinstance(item, int)]
    lists = [item for item in given if isinstance(item, list)]
    if len(texts) == len(given):
        return texts, None
    if len(token_ids) == len(given):
        return None, [token_ids]
    if len(lists) == len(given):
        return None, lists
    raise InvalidRequest(
        "input: expected a text, a list of texts, a list of token ids or a list of such lists, got a mixture",
        param="input",
        code="invalid_type",
    )


def _check_inputs(inputs: list[str] | list[list[int]]) -> None:
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidRequest(f"input: expected 1 to {MAX_INPUTS} inputs, got {len(inputs)}", param="input")
    for place, item in enumerate(inputs):
        if not item:
            raise InvalidRequest(f"input[{place}]: expected something to embed, got nothing", param="input")


def response_body(body: bytes, model: str, answer: Embedded) -> dict[str, Any]:
    """The answer as OpenAI writes it. body: the request's, which names the encoding."""
    write = _base64 if _format_decoder.decode(body).encoding_format == "base64" else _floats
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": write(embedding)}
            for index, embedding in enumerate(answer.embeddings)
        ],
        "model": model,
        "usage": {"prompt_tokens": answer.usage.prompt_tokens, "total_tokens": answer.usage.prompt_tokens},
    }


def _base64(embedding: bytes) -> str:
    return base64.b64encode(embedding).decode()


def _floats(embedding: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(embedding) // 4}f", embedding)
