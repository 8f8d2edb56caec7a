"""Completes the OpenAPI document: which errors a route can answer with, beside what its code says.

What follows from the kind of a route is written here, once: whoever needs a key may be refused, what names an object
may name one that is not there, what carries a body may be too large. `tests/integration/test_contract.py` holds every
answer of the running API against it.
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI

Schema = dict[str, Any]

METHODS = ("get", "post", "put", "patch", "delete")
EVENT_STREAM = "text/event-stream"

_ERROR = "Error"
_ERROR_SCHEMA: Schema = {
    "type": "object",
    "description": "Errors as OpenAI writes them; docs/reference/errors.md lists the codes.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
    "example": {
        "error": {
            "message": "no batch with id 'batch_1'",
            "type": "invalid_request_error",
            "param": "id",
            "code": "not_found",
        }
    },
}
_RETRY_AFTER: Schema = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}

_MEANINGS = {
    400: "Something in the request is wrong; `param` names it.",
    401: "The key is missing, unknown, expired or revoked.",
    403: "The key has not the scope for it.",
    404: "There is no such object, or it is somebody else's.",
    409: "The state does not allow it, or the Idempotency-Key came with another body.",
    413: "The body or the file is too large.",
    429: "Too much for the moment; come again.",
    499: "The client left before the answer.",
    500: "A defect of Millrace, or the model failed.",
    503: "PostgreSQL, Redis or an engine is away, or the answer took too long.",
}
_RETRIED = (429, 503)
_CONFLICTING = ("patch", "delete")
# Whoever waits for an answer gets the engine's failures, too.
_ANSWERING = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")


class Api(FastAPI):
    """Its document says of every route what it can answer."""

    def openapi(self) -> Schema:
        if self.openapi_schema is None:
            complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def complete(document: Schema) -> None:
    for path, item in document["paths"].items():
        for method in filter(item.__contains__, METHODS):
            _complete_operation(method, path, item[method])
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas[_ERROR] = _ERROR_SCHEMA
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)


def _complete_operation(method: str, path: str, operation: Schema) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # of FastAPI's, which nothing here answers with
    for status in sorted(set(_statuses(method, path, operation))):
        responses.setdefault(str(status), error_answer(status))


def _statuses(method: str, path: str, operation: Schema) -> Iterator[int]:
    has_body = "requestBody" in operation
    yield from (400, 500, 503)
    if "security" in operation:
        yield from (401, 403, 429)
    if "{" in path or has_body or any(parameter["name"] == "after" for parameter in operation.get("parameters", ())):
        yield 404
    if has_body:
        yield 413
    if has_body or method in _CONFLICTING or path.endswith("/cancel"):
        yield 409
    if method == "post" and path in _ANSWERING:
        yield 499


def error_answer(status: int) -> Schema:
    reason = "Client Closed Request" if status == 499 else HTTPStatus(status).phrase
    response: Schema = {
        "description": f"{reason}. {_MEANINGS[status]}",
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{_ERROR}"}}},
    }
    return {**response, "headers": _RETRY_AFTER} if status in _RETRIED else response


def json_body(of_type: type, example: Schema) -> Schema:
    """`openapi_extra` of a route that reads its body itself, as the struct `of_type`."""
    return _body({"schema": inline_schema(of_type), "example": example})


def schema_body(schema: Schema) -> Schema:
    """The same of a schema with definitions, which do not hold themselves; their examples are theirs."""
    return _body({"schema": _inlined(schema, schema.pop("$defs", {}))})


def _body(content: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def inline_schema(of_type: type) -> Schema:
    """Of a struct that does not hold itself. Numbers of msgspec's own dialect are left as they are."""
    schema = msgspec.json.schema(of_type)
    inlined: Schema = _inlined(schema, schema.pop("$defs", {}))
    return inlined


def _inlined(value: Any, definitions: Schema) -> Any:
    if isinstance(value, list):
        return [_inlined(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(item, definitions) for name, item in value.items() if not _names_definitions(name, item)}


def _names_definitions(name: str, value: Any) -> bool:
    """A discriminator tells definitions apart, which are no more once they are inlined."""
    return name == "discriminator" and isinstance(value, dict)


def or_events(description: str) -> dict[int | str, Schema]:
    """`responses` of a route that answers with one object, or with events where they were asked for."""
    return {
        200: {
            "description": description,
            "content": {
                "application/json": {"schema": {"type": "object"}},
                EVENT_STREAM: {"schema": {"type": "string"}},
            },
        }
    }


def events(description: str) -> dict[int | str, Schema]:
    return {200: {"description": description, "content": {EVENT_STREAM: {}}}}
