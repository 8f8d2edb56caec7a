"""Items, of which the input and the output of a response consist, and the chat messages that say the same.

A stored item has an id and all its fields, as OpenAI lists it. Texts, function calls and their outputs are known; what
else there is (images, files, calls of tools that the server would run) is refused by name.
"""

import secrets
from collections.abc import Sequence
from typing import Any

from core.errors import InvalidRequest, Unsupported
from core.openai.answer import tool_calls
from core.openai.message import Message as Said

Item = dict[str, Any]
Message = dict[str, Any]

INPUT_TEXT, OUTPUT_TEXT = "input_text", "output_text"
_TEXT_PARTS = {INPUT_TEXT: "text", OUTPUT_TEXT: "text", "refusal": "refusal"}
_ROLES = ("system", "developer", "user", "assistant")


def read_input(given: str | list[Item]) -> list[Item]:
    """Raises InvalidRequest naming the item that is wrong, Unsupported for what is not offered."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not given:
        raise InvalidRequest("input: expected a text or at least one item, got none", param="input")
    found = [_read_item(f"input[{index}]", item) for index, item in enumerate(given)]
    return [item for item in found if item is not None]


def _read_item(place: str, item: Item) -> Item | None:
    """None for what says nothing to a model of ours: a summary of somebody's reasoning."""
    match item.get("type", "message"):
        case "message":
            return _read_message(place, item)
        case "function_call":
            return {
                "id": _given_id(item, "fc"),
                "type": "function_call",
                "status": "completed",
                "call_id": _text(place, item, "call_id"),
                "name": _text(place, item, "name"),
                "arguments": _text(place, item, "arguments"),
            }
        case "function_call_output":
            return {
                "id": _given_id(item, "fco"),
                "type": "function_call_output",
                "status": "completed",
                "call_id": _text(place, item, "call_id"),
                "output": _joined(f"{place}.output", item.get("output")),
            }
        case "reasoning":
            return None
        case other:
            raise Unsupported(
                f"{place}: expected a message, function_call or function_call_output, got {other!r}",
                param=f"{place}.type",
            )


def _read_message(place: str, item: Item) -> Item:
    role = item.get("role")
    if role not in _ROLES:
        raise InvalidRequest(f"{place}: expected a role of {', '.join(_ROLES)}, got {role!r}", param=f"{place}.role")
    text = _joined(f"{place}.content", item.get("content"))
    part: Item = {"type": INPUT_TEXT, "text": text}
    if role == "assistant":
        part = {"type": OUTPUT_TEXT, "text": text, "annotations": []}
    return {"id": _given_id(item, "msg"), "type": "message", "status": "completed", "role": role, "content": [part]}


def _given_id(item: Item, prefix: str) -> str:
    given = item.get("id")
    return given if isinstance(given, str) and given else f"{prefix}_{secrets.token_hex(12)}"


def _text(place: str, item: Item, name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(
            f"{place}.{name}: expected text, got {type(value).__name__}", param=f"{place}.{name}", code="invalid_type"
        )
    return value


def _joined(place: str, content: object) -> str:
    """A text, or a list of parts that are texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{place}: expected text or a list of parts, got {type(content).__name__}", param=place, code="invalid_type"
        )
    return "".join(_part_text(f"{place}[{index}]", part) for index, part in enumerate(content))


def _part_text(place: str, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in _TEXT_PARTS:
        raise Unsupported(f"{place}: expected a part of type {', '.join(_TEXT_PARTS)}, got {kind!r}", param=place)
    return _text(place, part, _TEXT_PARTS[kind])


def chat_messages(items: Sequence[Item]) -> list[Message]:
    """What the items say, for a chat template."""
    messages: list[Message] = []
    for item in items:
        match item["type"]:
            case "message":
                messages.append({"role": item["role"], "content": "".join(map(_stored_text, item["content"]))})
            case "function_call":
                _assistant(messages).setdefault("tool_calls", []).append(_tool_call(item))
            case "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
    return messages


def _stored_text(part: Item) -> str:
    return str(part["text"])


def _assistant(messages: list[Message]) -> Message:
    """The message that calls of tools belong to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _tool_call(item: Item) -> Item:
    return {
        "id": item["call_id"],
        "type": "function",
        "function": {"name": item["name"], "arguments": item["arguments"]},
    }


def output_items(response_id: str, completion: dict[str, Any]) -> list[Item]:
    """What a finished chat completion says, as items whose ids follow from the response's. One that was cut off ends
    within the last of them."""
    choice = completion["choices"][0]
    message = choice["message"]
    logprobs = (choice.get("logprobs") or {}).get("content") or []
    items = _said_items(response_id, message.get("content") or "", message.get("tool_calls") or [], logprobs)
    if choice["finish_reason"] == "length":
        items[-1]["status"] = "incomplete"
    return items


def growing_items(response_id: str, request_id: str, message: Said) -> list[Item]:
    """The same of an answer as far as it has come, without log-probabilities."""
    if not message.content and not message.calls:
        return []
    return _said_items(response_id, message.content, tool_calls(message.calls, request_id, 0))


def _said_items(response_id: str, text: str, calls: Sequence[Item], logprobs: Sequence[Item] = ()) -> list[Item]:
    name = response_id.removeprefix("resp_")
    items = [text_item(name, "completed", [text_part(text, logprobs)])] if text or not calls else []
    return items + [_call_item(f"fc_{name}_{number}", call) for number, call in enumerate(calls)]


def text_item(name: str, status: str, content: list[Item]) -> Item:
    return {"id": f"msg_{name}", "type": "message", "status": status, "role": "assistant", "content": content}


def text_part(text: str, logprobs: Sequence[Item] = ()) -> Item:
    return {"type": OUTPUT_TEXT, "text": text, "annotations": [], "logprobs": list(logprobs)}


def _call_item(item_id: str, call: Item) -> Item:
    function = call["function"]
    return {
        "id": item_id,
        "type": "function_call",
        "status": "completed",
        "call_id": call["id"],
        "name": function["name"],
        "arguments": function["arguments"],
    }
