"""What a request says about tools: which the model is told of, and whether it has to call one. Pure.

A call that has to be made is forced by a JSON schema: the answer is then a list of calls and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from core.errors import InvalidRequest, Unsupported
from core.openai.tool_calls import ToolFormat

MAX_TOOLS = 128


@dataclass(frozen=True, slots=True)
class ToolUse:
    """tools: for the chat template. schema: that the answer has to fit, where a call is forced."""

    tools: list[dict[str, Any]] | None = None
    schema: str | None = None

    @property
    def format(self) -> str:
        """How the answer's calls are written; empty where the model decides."""
        return ToolFormat.LIST if self.schema is not None else ToolFormat.NONE


NO_TOOLS = ToolUse()


def read_tools(tools: Sequence[object] | None, choice: object, *, is_parallel: bool) -> ToolUse:
    """Raises InvalidRequest, naming the field, and Unsupported for kinds of tools that are not functions."""
    checked = [_checked(index, tool) for index, tool in enumerate(tools or ())]
    named = dict(checked)
    if not named:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice: expected tools beside it", param="tool_choice")
        return ToolUse()
    if len(named) != len(tools or ()) or len(named) > MAX_TOOLS:
        raise InvalidRequest(f"tools: expected at most {MAX_TOOLS} functions, each with its own name", param="tools")
    given = list(named.values())
    match choice:
        case None | "auto":
            return ToolUse(given)
        case "none":
            return ToolUse()
        case "required":
            return ToolUse(given, _schema(named, is_parallel=is_parallel))
        case {"type": "function", "function": {"name": str(name)}} if name in named:
            return ToolUse(given, _schema({name: named[name]}, is_parallel=False))
    raise InvalidRequest(
        'tool_choice: expected "none", "auto", "required" or {"type": "function", "function": {"name": …}} with the '
        f"name of one of the tools, got {choice!r}",
        param="tool_choice",
    )


def _checked(index: int, tool: object) -> tuple[str, dict[str, Any]]:
    where = f"tools[{index}]"
    kind = tool.get("type") if isinstance(tool, Mapping) else type(tool).__name__
    if kind != "function":
        raise Unsupported(f'{where}: expected {{"type": "function", "function": …}}, got type {kind!r}', param="tools")
    assert isinstance(tool, Mapping)
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name or not isinstance(parameters, Mapping | None):
        raise InvalidRequest(
            f"{where}.function: expected a name of text and parameters that are a JSON schema", param="tools"
        )
    return name, dict(tool)


def _schema(tools: Mapping[str, Mapping[str, Any]], *, is_parallel: bool) -> str:
    """Of a list of calls, one alone unless several may be made at once."""
    definitions: dict[str, Any] = {}
    calls = [_call_schema(name, tool["function"].get("parameters"), definitions) for name, tool in tools.items()]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not is_parallel:
        schema["maxItems"] = 1
    if definitions:
        schema["$defs"] = definitions
    return msgspec.json.encode(schema).decode()


def _call_schema(name: str, parameters: Mapping[str, Any] | None, definitions: dict[str, Any]) -> dict[str, Any]:
    """Definitions of the parameters move to the top, where references look for them, under names of their own."""
    own = dict(parameters or {"type": "object", "properties": {}})
    moved = {**own.pop("definitions", {}), **own.pop("$defs", {})}
    for key, value in moved.items():
        definitions[f"{name}.{key}"] = _renamed(value, name)
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": _renamed(own, name)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _renamed(schema: Any, name: str) -> Any:
    if isinstance(schema, list):
        return [_renamed(item, name) for item in schema]
    if not isinstance(schema, dict):
        return schema
    renamed = {key: _renamed(value, name) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        for place in ("#/$defs/", "#/definitions/"):
            if reference.startswith(place):
                renamed["$ref"] = f"#/$defs/{name}.{reference.removeprefix(place)}"
    return renamed
