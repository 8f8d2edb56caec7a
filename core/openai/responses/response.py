"""OpenAI's response object, at any time of its life."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from core.openai.responses.items import Item, output_items

SUCCESS, SERVER_ERROR = 200, 500


class Status(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({Status.COMPLETED, Status.INCOMPLETE, Status.FAILED, Status.CANCELLED})


@dataclass(frozen=True, slots=True)
class Beginning:
    """What does not change any more. created: seconds since 1970."""

    id: str
    created: int
    echo: dict[str, Any]


def unfinished(beginning: Beginning, status: Status) -> dict[str, Any]:
    return _object(beginning, status)


def failed(beginning: Beginning, code: str, message: str) -> dict[str, Any]:
    return {**_object(beginning, Status.FAILED), "error": {"code": code, "message": message}}


def answered(beginning: Beginning, status_code: int, body: str, finished: int) -> dict[str, Any]:
    """body: of the chat completion, or an error object.  finished: seconds since 1970."""
    content = msgspec.json.decode(body)
    if status_code != SUCCESS:
        error = content["error"]
        return failed(beginning, "invalid_prompt" if status_code < SERVER_ERROR else "server_error", error["message"])
    is_cut = content["choices"][0]["finish_reason"] == "length"
    status = Status.INCOMPLETE if is_cut else Status.COMPLETED
    return {
        **_object(beginning, status, output_items(beginning.id, content)),
        "completed_at": None if is_cut else finished,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "usage": _usage(content["usage"]),
    }


def _object(beginning: Beginning, status: Status, output: list[Item] | None = None) -> dict[str, Any]:
    return {
        "id": beginning.id,
        "object": "response",
        "created_at": beginning.created,
        "completed_at": None,
        "status": status.value,
        "error": None,
        "incomplete_details": None,
        **beginning.echo,
        "output": output or [],
        "usage": None,
    }


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
