"""Tools in prompts: templates that know them, those that do not, and the tokens that mark calls."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from core.chat_template import ChatTemplate
from core.errors import Unsupported
from core.openai.tool_calls import ToolFormat
from core.prompts import PromptCodec
from tests.engine_models import CHAT_TEMPLATE, tiny_tokenizer

TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for message in messages %}{{ message.role }}:"
    "{{ message.content }}{% for call in message.tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}"
)
USER = {"role": "user", "content": "hi"}


def codec(template: str, tool_template: str | None = None) -> PromptCodec:
    other = None if tool_template is None else ChatTemplate(tool_template, {})
    return PromptCodec(tiny_tokenizer(), ChatTemplate(template, {}), other)


def test_a_template_that_knows_tools_is_told_of_them() -> None:
    known = codec(TEMPLATE)
    assert known.render_chat([USER], TOOLS) == json.dumps(TOOLS) + "<tool_call>user:hi"
    assert known.render_chat([USER]) == "user:hi"
    assert known.tool_format is ToolFormat.TAGS
    assert len(known.encode_chat([USER], tools=TOOLS)) > len(known.encode_chat([USER]))


def test_a_template_that_knows_none_is_not_asked() -> None:
    plain = codec(CHAT_TEMPLATE)
    assert plain.tool_format is ToolFormat.NONE
    with pytest.raises(Unsupported, match="knows none") as refused:
        plain.render_chat([USER], TOOLS)
    assert refused.value.param == "tools"


def test_a_template_of_its_own_for_tools_is_used_with_tools_alone() -> None:
    both = codec(CHAT_TEMPLATE, TEMPLATE)
    assert both.render_chat([USER]) == "<user>hi<assistant>"
    assert "<tool_call>" in both.render_chat([USER], TOOLS)


def test_calls_in_the_conversation_have_arguments_as_objects() -> None:
    # Given
    calls = [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": "mill"}'}},
        {"id": "b", "type": "function", "function": {"name": "look", "arguments": "no JSON"}},
    ]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    # When
    prompt = codec(TEMPLATE).render_chat([answer, {"role": "tool", "tool_call_id": "a", "content": "4"}])
    # Then
    assert prompt == 'assistant:{"at": "mill"}"no JSON"tool:4'


def test_arguments_that_are_nested_too_deep_are_text() -> None:
    # Given
    deep = "[" * 5_000
    calls = [{"id": "a", "type": "function", "function": {"name": "look", "arguments": deep}}]
    # When
    prompt = codec(TEMPLATE).render_chat([{"role": "assistant", "content": "", "tool_calls": calls}])
    # Then
    assert prompt == f'assistant:"{deep}"'


def test_named_templates_of_a_directory_are_found(tmp_path: Path) -> None:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    named = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "tool_use", "template": TEMPLATE}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert PromptCodec.load(tmp_path).tool_format is ToolFormat.TAGS


@pytest.mark.parametrize("is_byte_level", [True, False])
def test_special_tokens_that_mark_calls_stay_where_they_are_wanted(is_byte_level: bool) -> None:
    # Given a vocabulary in which the mark is special
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    if is_byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True), AddedToken("<end>", special=True)])
    known = PromptCodec(tokenizer, None)
    # When
    plain, marked = known.stream(), known.stream(keeps_marks=True)
    texts = ["".join((one.push([0, 2]), one.push([1, 3]), one.finish())) for one in (plain, marked)]
    # Then
    assert [text.replace(" ", "") for text in texts] == ["ab", "a[TOOL_CALLS]b"]
