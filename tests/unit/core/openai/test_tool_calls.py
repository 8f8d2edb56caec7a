"""Calls in what models write: found in every format, told as they grow, and no text lost that is no call."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.openai.message import Call, Message
from core.openai.tool_calls import ToolFormat, detect_format, read_message

LOOK = Call("look", '{"at": "the \\"wheel\\" {now}", "deep": [1, {"a": null}]}')
WAIT = Call("wait", "{}")


def written(call: Call, key: str = "arguments") -> str:
    return f'{{"name": "{call.name}", "{key}": {call.arguments}}}'


CASES = {
    "one tagged": (
        ToolFormat.TAGS,
        f"<tool_call>\n{written(LOOK)}\n</tool_call>",
        Message("", (LOOK,)),
    ),
    "text and two tagged": (
        ToolFormat.TAGS,
        f"Let me see.\n<tool_call>\n{written(LOOK)}\n</tool_call>\n<tool_call>\n{written(WAIT)}\n</tool_call>",
        Message("Let me see.\n", (LOOK, WAIT)),
    ),
    "arguments before the name": (
        ToolFormat.TAGS,
        f'<tool_call>{{"arguments": {LOOK.arguments}, "name": "look"}}</tool_call>',
        Message("", (LOOK,)),
    ),
    "arguments as a string": (
        ToolFormat.TAGS,
        '<tool_call>{"name": "look", "arguments": "{\\"at\\": 1}"}</tool_call>',
        Message("", (Call("look", '{"at": 1}'),)),
    ),
    "no arguments": (ToolFormat.TAGS, '<tool_call>{"name": "wait"}</tool_call>', Message("", (WAIT,))),
    "cut off": (
        ToolFormat.TAGS,
        '<tool_call>{"name": "look", "arguments": {"at": "the',
        Message("", (Call("look", '{"at": "the'),)),
    ),
    "a tag around something else": (
        ToolFormat.TAGS,
        "Well <tool_call>nonsense</tool_call> and <tool",
        Message("Well <tool_call>nonsense</tool_call> and <tool"),
    ),
    "something else before and behind a call": (
        ToolFormat.TAGS,
        f"<tool_call>a</tool_call> b <tool_call>{written(WAIT)}</tool_call> c <tool_call>d</tool_call>",
        Message("<tool_call>a</tool_call> b ", (WAIT,)),
    ),
    "no call": (ToolFormat.TAGS, "1 < 2 <tool", Message("1 < 2 <tool")),
    "nothing but space": (ToolFormat.TAGS, " \n", Message(" \n")),
    "llama": (ToolFormat.LLAMA, written(LOOK, "parameters"), Message("", (LOOK,))),
    "llama with its tag, twice": (
        ToolFormat.LLAMA,
        f"<|python_tag|>{written(LOOK, 'parameters')}; {written(WAIT, 'parameters')}",
        Message("", (LOOK, WAIT)),
    ),
    "llama answering with an object": (
        ToolFormat.LLAMA,
        '{"name": "Bob", "age": 7}',
        Message('{"name": "Bob", "age": 7}'),
    ),
    "llama answering with text": (ToolFormat.LLAMA, "It is {round}.", Message("It is {round}.")),
    "mistral's list": (
        ToolFormat.MISTRAL,
        f"[TOOL_CALLS] [{written(LOOK)}, {written(WAIT)}]",
        Message("", (LOOK, WAIT)),
    ),
    "mistral's names": (
        ToolFormat.MISTRAL,
        f"Well [TOOL_CALLS]look[ARGS]{LOOK.arguments}[TOOL_CALLS]wait{{}}",
        Message("Well ", (LOOK, WAIT)),
    ),
    "mistral answering with text": (ToolFormat.MISTRAL, "It is [round", Message("It is [round")),
    "a forced list": (ToolFormat.LIST, f"[{written(LOOK)}\n, {written(WAIT)}]", Message("", (LOOK, WAIT))),
    "no format": (ToolFormat.NONE, f"<tool_call>{written(LOOK)}", Message(f"<tool_call>{written(LOOK)}")),
}


@pytest.mark.parametrize("name", CASES)
def test_calls_are_found_and_the_rest_is_content(name: str) -> None:
    tool_format, text, message = CASES[name]
    assert read_message(tool_format, text, is_end=True) == message


@pytest.mark.parametrize("name", CASES)
def test_what_is_told_of_a_beginning_is_the_beginning_of_what_is_told_in_the_end(name: str) -> None:
    tool_format, text, _ = CASES[name]
    told = [read_message(tool_format, text[:length], is_end=False) for length in range(len(text) + 1)]
    told.append(read_message(tool_format, text, is_end=True))
    for earlier, later in pairwise(told):
        assert earlier.begins(later), (earlier, later)


PIECES = (
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "f"', ', "arguments": '),
    *('{"a": 1}', "}", "{", "[", "]", '"', "\\", " ", "\n", "x", ",", ";", '"parameters"', ":", "<tool"),
)


@given(st.sampled_from(list(ToolFormat)), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_text_whatever_takes_back_what_was_told(tool_format: ToolFormat, text: str) -> None:
    told = [read_message(tool_format, text[:length], is_end=False) for length in range(len(text) + 1)]
    told.append(read_message(tool_format, text, is_end=True))
    for earlier, later in pairwise(told):
        assert earlier.begins(later), (earlier, later)


@given(st.sampled_from(list(ToolFormat)), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_content_has_ended_where_a_call_has_begun(tool_format: ToolFormat, text: str) -> None:
    whole = read_message(tool_format, text, is_end=True)
    for length in range(len(text)):
        growing = read_message(tool_format, text[:length], is_end=False)
        assert not growing.calls or growing.content == whole.content


@pytest.mark.parametrize(
    ("template", "tool_format"),
    [
        ("{% if tools %}return <tool_call>{% endif %}", ToolFormat.TAGS),
        ("{{ tools }}[TOOL_CALLS]", ToolFormat.MISTRAL),
        ("{{ tools }}<|python_tag|>", ToolFormat.LLAMA),
        ('{{ tools }}Environment: ipython {"name": …, "parameters": …}', ToolFormat.LLAMA),
        ("{{ tools }}<tool_call><function=f>", ToolFormat.NONE),
        ("{{ tools }}", ToolFormat.NONE),
    ],
)
def test_the_template_tells_the_format(template: str, tool_format: ToolFormat) -> None:
    assert detect_format(template) == tool_format


def test_a_name_that_is_nested_too_deep_is_none() -> None:
    text = '<tool_call>{"name": ' + "[" * 5_000 + "]" * 5_000 + ', "arguments": {}}</tool_call>'
    assert read_message(ToolFormat.TAGS, text, is_end=True) == Message(text)
