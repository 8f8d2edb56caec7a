"""From the bytes of a body to a checked job. Thousands of requests are read and checked in slices, so that whoever
streams from this process gets a turn in between; call it in a thread. Says what is wrong as FastAPI would.
"""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from api.native.bodies import AnyJob, AnyJobBody, InlineRequest
from core.errors import InvalidRequest
from core.openai.decoding import decode

SLICE_REQUESTS = 256
LISTS = ("prompts", "requests")

_outline = msgspec.json.Decoder(dict[str, msgspec.Raw])
_pieces = msgspec.json.Decoder(list[msgspec.Raw])
_job: TypeAdapter[AnyJob] = TypeAdapter(AnyJobBody)
_requests: TypeAdapter[list[InlineRequest]] = TypeAdapter(list[InlineRequest])


def read_job(body: bytes) -> AnyJob:
    """Raises InvalidRequest for what is no JSON object, RequestValidationError for another one than a job."""
    outline = decode(_outline, body)
    values = {name: _value(name, bytes(raw)) for name, raw in outline.items()}
    if values.get("kind") == "inference" and isinstance(values.get("requests"), list):
        values["requests"] = list(_checked(values["requests"]))
    try:
        return _job.validate_python(values)
    except ValidationError as error:
        raise _refused(error, ()) from error


def _value(name: str, raw: bytes) -> Any:
    if name in LISTS and raw.startswith(b"["):
        return [_loaded(name, bytes(piece)) for piece in decode(_pieces, raw)]
    return _loaded(name, raw)


def _loaded(name: str, raw: bytes) -> Any:
    """Takes numbers of any size, and what is no Unicode; who checks it says what is wrong with it."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name}: expected JSON: {error}", param=name, code="invalid_json") from error


def _checked(requests: list[Any]) -> Iterator[InlineRequest]:
    for start in range(0, len(requests), SLICE_REQUESTS):
        try:
            yield from _requests.validate_python(requests[start : start + SLICE_REQUESTS])
        except ValidationError as error:
            raise _refused(error, ("inference", "requests"), start) from error


def _refused(error: ValidationError, place: tuple[str, ...], start: int = 0) -> RequestValidationError:
    """start: the number of the first request of a slice."""
    found = error.errors(include_url=False)
    if not place:
        return RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found])
    numbered = [(int(one["loc"][0]) + start, *one["loc"][1:]) for one in found]
    return RequestValidationError(
        [{**one, "loc": ("body", *place, *loc)} for one, loc in zip(found, numbered, strict=True)]
    )


def job_schema() -> dict[str, Any]:
    """Of all kinds of job, for the OpenAPI document."""
    return _job.json_schema()
