import json
from typing import Any

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from core.errors import InvalidRequest
from core.openai.responses.items import chat_messages, output_items
from core.openai.responses.request import parse_response_request


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "hello", **fields}).encode()


def chat(**fields: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(parse_response_request(body(**fields)).chat_body([]))
    return content


def test_the_least_body_is_one_message_and_openais_defaults() -> None:
    # When
    request = parse_response_request(body())
    # Then
    assert chat() == {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    assert (request.is_background, request.is_stored, request.is_streamed) == (False, True, False)
    assert request.echo["temperature"] == request.echo["top_p"] == 1.0
    assert request.echo["text"] == {"format": {"type": "text"}}


def test_parameters_become_those_of_a_chat_completion() -> None:
    # When
    found = chat(
        instructions="be brief",
        max_output_tokens=5,
        temperature=0,
        top_p=0.5,
        seed=3,
        text={"format": {"type": "json_schema", "name": "n", "strict": True, "schema": {"type": "object"}}},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        stream=True,
        metadata={"a": "b"},
        user="somebody",
    )
    # Then
    assert found["messages"][0] == {"role": "system", "content": "be brief"}
    assert (found["max_completion_tokens"], found["temperature"], found["top_p"], found["seed"]) == (5, 0, 0.5, 3)
    schema = {"name": "n", "strict": True, "schema": {"type": "object"}}
    assert found["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert (found["logprobs"], found["top_logprobs"], found["stream"]) == (True, 2, True)
    assert not {"metadata", "user", "instructions"} & set(found)


def test_items_become_messages() -> None:
    # When
    request = parse_response_request(
        body(
            input=[
                {"role": "developer", "content": "rules"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"role": "assistant", "content": [{"type": "output_text", "text": "let me see", "annotations": []}]},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            ]
        )
    )
    # Then
    assert chat_messages(request.items) == [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    assert [item["type"] for item in request.items] == ["message"] * 3 + ["function_call", "function_call_output"]
    assert len({item["id"] for item in request.items}) == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"role": "nobody", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "n"}]}, "input[0].arguments"),
        ({"background": True, "store": False}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_is_wrong_or_not_offered_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_response_request(body(**fields))
    assert refused.value.param == param


def test_an_unknown_field_is_refused_and_openais_own_are_known() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_response_request(body(max_tokens=5))
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "max_tokens")
    for name in ResponseCreateParamsBase.__annotations__.keys() - {"model", "input", "metadata"}:
        assert parse_response_request(body(**{name: None})).model == "m"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"text": {"format": {"type": "xml"}}}, "text.format"), ({"min_tokens": -1}, "min_tokens")],
)
def test_what_a_chat_completion_refuses_is_named_as_it_was_sent(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_response_request(body(**fields)).chat_body([])
    assert refused.value.param == param


def test_an_answer_becomes_items() -> None:
    # Given
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "so", "tool_calls": [call]}
    completion = {"choices": [{"message": message, "finish_reason": "tool_calls", "logprobs": None}]}
    # When
    text, function = output_items("resp_1", completion)
    # Then
    assert (text["id"], text["content"][0]["text"], text["status"]) == ("msg_1", "so", "completed")
    assert (function["type"], function["call_id"], function["name"]) == ("function_call", "call_1", "f")
