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
        code = "unknown_parameter" if "unknown field" in reason else "invalid_type"
        raise InvalidRequest(f"{field}: {reason}", param=field, code=code) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"body: expected a JSON object: {error}", param="body", code="invalid_json") from error


def _field(reason: str, path: str) -> str:
    """`$.temperature` -> `temperature`; a missing or unknown field stands in the reason."""
    _, _, quoted = reason.partition(" field `")
    named = [part for part in (path.strip("`$.").strip("`"), quoted.rstrip("`")) if part]
    return ".".join(named) or "body"
