"""JSON bodies into structs, and what is wrong with them in the words of OpenAI's errors. Knows no endpoint."""

from typing import TypeVar

import msgspec

from core.errors import InvalidRequest

T = TypeVar("T")


def decode(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Raises InvalidRequest naming the field that is wrong."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        field = _field(reason, path)
        raise InvalidRequest(f"{field}: {reason}", param=field, code="invalid_type") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"body: expected a JSON object: {error}", param="body", code="invalid_json") from error


def _field(reason: str, path: str) -> str:
    """`$.temperature` -> `temperature`; a missing field stands in the reason."""
    if path:
        return path.strip("`$.").strip("`") or "body"
    _, _, quoted = reason.partition("required field `")
    return quoted.rstrip("`") or "body"
