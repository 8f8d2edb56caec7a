"""What requests say about tools: checked, handed to the template, and forced by a schema where a call has to come."""

import json
from typing import Any

import pytest

from core.errors import InvalidRequest
from core.openai.completion import CHAT_ENDPOINT, parse_body
from core.openai.tools import read_tools

PLACE = {"type": "object", "properties": {"at": {"$ref": "#/$defs/Place"}}, "$defs": {"Place": {"enum": ["mill"]}}}


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("look", PLACE), tool("wait")]


def test_the_model_is_told_of_tools_unless_it_may_call_none() -> None:
    assert read_tools(TOOLS, None, is_parallel=True).tools == TOOLS
    assert read_tools(TOOLS, "auto", is_parallel=True).schema is None
    assert read_tools(TOOLS, "none", is_parallel=True).tools is None
    assert read_tools([], "auto", is_parallel=True).tools is None


def test_a_call_that_has_to_come_is_forced_by_a_schema_whose_references_still_lead_somewhere() -> None:
    # When
    use = read_tools(TOOLS, "required", is_parallel=True)
    # Then
    assert use.format == "list"
    schema = json.loads(use.schema or "")
    assert schema["$defs"] == {"look.Place": {"enum": ["mill"]}}
    look, wait = schema["items"]["anyOf"]
    assert look["properties"]["arguments"]["properties"]["at"] == {"$ref": "#/$defs/look.Place"}
    assert wait["properties"]["name"] == {"const": "wait"}
    assert (schema["minItems"], "maxItems" in schema) == (1, False)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "wait"}}])
def test_one_call_alone_is_forced_where_it_is_named_or_none_may_run_beside_it(choice: object) -> None:
    schema = json.loads(read_tools(TOOLS, choice, is_parallel=False).schema or "")
    assert schema["maxItems"] == 1


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        (None, "required", "tool_choice"),
        (TOOLS, "sometimes", "tool_choice"),
        (TOOLS, {"type": "function", "function": {"name": "other"}}, "tool_choice"),
        ([{"type": "web_search"}], None, "tools"),
        ([{"type": "function"}], None, "tools"),
        ([tool("")], None, "tools"),
        ([tool("a"), tool("a")], None, "tools"),
        (["look"], None, "tools"),
    ],
)
def test_what_is_no_tool_or_no_choice_is_refused_by_name(tools: Any, choice: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_tools(tools, choice, is_parallel=True)
    assert refused.value.param == param


def test_a_request_carries_its_tools_to_the_engine() -> None:
    # Given
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, "tool_choice": "required"}
    # When
    generate = parse_body(CHAT_ENDPOINT, json.dumps(body).encode()).to_generate("x", priority=0)
    # Then
    assert (generate.tools, generate.tool_format) == (TOOLS, "list")
    assert generate.sampling.json_schema is not None
    with pytest.raises(InvalidRequest, match="response_format"):
        parse_body(CHAT_ENDPOINT, json.dumps({**body, "response_format": {"type": "json_object"}}).encode())


def test_a_schema_that_is_nested_too_deep_is_refused() -> None:
    # Given
    depth = 700
    parameters = '{"not":' * depth + "{}" + "}" * depth
    function = '{"type":"function","function":{"name":"look","parameters":' + parameters + "}}"
    body = (
        '{"model":"m","messages":[{"role":"user","content":"?"}],"tool_choice":"required","tools":[' + function + "]}"
    )
    # When / Then
    with pytest.raises(InvalidRequest, match="less nesting"):
        parse_body(CHAT_ENDPOINT, body.encode())
