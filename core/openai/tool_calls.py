"""Finds tool calls in what a model wrote, whole or as far as it has come. Pure.

What is read of the beginning of a text is always the beginning of what is read of all of it, so that a stream can tell
it as it grows. Arguments are the model's own characters. What is no call after all is content, so nothing is lost; but
content ends where the first call begins, and what else stands behind that is left out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from core.openai.message import Call, Message


class ToolFormat(StrEnum):
    """How a model writes calls: `tags` is `<tool_call>{"name", "arguments"}</tool_call>` (Hermes, Qwen), `llama` is
    `{"name", "parameters"}`, `mistral` is `[TOOL_CALLS]` and a list, or a name and its arguments, `list` is a JSON list
    that a schema forces."""

    NONE = ""
    TAGS = "tags"
    LLAMA = "llama"
    MISTRAL = "mistral"
    LIST = "list"


OPEN, CLOSE = "<tool_call>", "</tool_call>"
MISTRAL_MARK, MISTRAL_ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
PYTHON_TAG = "<|python_tag|>"
# Tokens that count as special in some vocabularies, and without which a call cannot be recognised.
MARKS = frozenset({OPEN, CLOSE, MISTRAL_MARK, MISTRAL_ARGUMENTS, PYTHON_TAG})

_SPACE = " \t\r\n"
_ARGUMENT_KEYS = ("arguments", "parameters")


def detect_format(template: str) -> ToolFormat:
    """From the source of a chat template that knows tools."""
    if "<function=" in template:
        return ToolFormat.NONE  # calls in XML
    if OPEN in template:
        return ToolFormat.TAGS
    if MISTRAL_MARK in template:
        return ToolFormat.MISTRAL
    if PYTHON_TAG in template or ("ipython" in template and "parameters" in template):
        return ToolFormat.LLAMA
    return ToolFormat.NONE


def read_message(tool_format: str, text: str, *, is_end: bool) -> Message:
    """is_end: nothing follows, so whatever could still have become a call is none."""
    match tool_format:
        case ToolFormat.TAGS:
            return _read_tagged(text, is_end=is_end)
        case ToolFormat.LLAMA:
            return _read_llama(text, is_end=is_end)
        case ToolFormat.MISTRAL:
            return _read_mistral(text, is_end=is_end)
        case ToolFormat.LIST:
            calls = tuple(_calls_of(text, len(text) - len(text.lstrip())))
            return Message(text if is_end and not calls else "", calls)
    return Message(text)


def _read_tagged(text: str, *, is_end: bool) -> Message:
    content, calls, position = "", list[Call](), 0
    while (mark := text.find(OPEN, position)) >= 0:
        start = mark + len(OPEN)
        close = text.find(CLOSE, start)
        call = _only_call(text[start:close] if close >= 0 else _without_begun(text[start:], CLOSE))
        is_content = call is None and (close >= 0 or is_end)
        after = close + len(CLOSE) if close >= 0 else len(text)
        if not calls:
            content += text[position : after if is_content else mark]
        if call is not None:
            calls.append(call)
        position = after
    if not calls:
        content += text[position:] if is_end else _without_begun(text[position:], OPEN)
    return Message(_content(content, has_calls=bool(calls), is_end=is_end), tuple(calls))


def _read_llama(text: str, *, is_end: bool) -> Message:
    bare = text.lstrip()
    if not is_end and PYTHON_TAG.startswith(bare):
        return Message()
    start = len(text) - len(bare) + (len(PYTHON_TAG) if bare.startswith(PYTHON_TAG) else 0)
    calls = list[Call]()
    position = _skip(text, start)
    while position < len(text) and text[position] == "{":
        read = _read_object(text, position)
        if read.call is None or not read.has_arguments:
            if read.end is None and not is_end:
                return Message("", tuple(calls))
            break
        calls.append(read.call)
        position = len(text) if read.end is None else _skip(text, read.end, ";")
    return Message("" if calls else text, tuple(calls))


def _read_mistral(text: str, *, is_end: bool) -> Message:
    mark = text.find(MISTRAL_MARK)
    if mark < 0:
        whole = text if is_end else _without_begun(text, MISTRAL_MARK)
        return Message(_content(whole, has_calls=False, is_end=is_end))
    rest = text[mark + len(MISTRAL_MARK) :]
    start = _skip(rest, 0)
    if rest[start : start + 1] == "[" and not rest.startswith(MISTRAL_MARK, start):
        calls = list(_calls_of(rest, start))
    else:
        sure = rest if is_end else _without_begun(rest, MISTRAL_MARK)
        calls = [call for part in sure.split(MISTRAL_MARK) if (call := _named_call(part)) is not None]
    content = text if is_end and not calls else text[:mark]
    return Message(_content(content, has_calls=bool(calls), is_end=is_end), tuple(calls))


def _named_call(text: str) -> Call | None:
    """`name[ARGS]{…}` or `name{…}`."""
    start = text.find("{")
    if start < 0:
        return None
    name = text[:start].partition("[")[0].strip()
    end = _value_end(text, start)
    return Call(name, text[start : len(text) if end is None else end]) if name else None


def _calls_of(text: str, start: int) -> Iterator[Call]:
    """Of a JSON list."""
    if text[start : start + 1] != "[":
        return
    position = _skip(text, start + 1, ",")
    while position < len(text) and text[position] == "{":
        read = _read_object(text, position)
        if read.call is not None:
            yield read.call
        if read.end is None:
            return
        position = _skip(text, read.end, ",")


def _only_call(text: str) -> Call | None:
    start = _skip(text, 0)
    return _read_object(text, start).call if text[start : start + 1] == "{" else None


@dataclass(frozen=True, slots=True)
class _Object:
    """end: index behind it; None while it is not whole, or is none."""

    call: Call | None
    end: int | None
    has_arguments: bool = False


def _read_object(text: str, start: int) -> _Object:
    """`{"name": …, "arguments": …}` as far as it has come. It is a call once its name is known."""
    name, arguments, end = None, None, None
    position = start + 1
    while True:
        position = _skip(text, position, ",")
        if text[position : position + 1] == "}":
            end = position + 1
            break
        key_end = _value_end(text, position) if text[position : position + 1] == '"' else None
        value = None if key_end is None else _skip(text, key_end)
        if key_end is None or value is None or text[value : value + 1] != ":":
            break
        key = _decoded(text[position:key_end])
        value = _skip(text, value + 1)
        value_end = _value_end(text, value)
        if key in _ARGUMENT_KEYS and arguments is None and value < len(text):
            arguments = _arguments(text[value:value_end], is_whole=value_end is not None)
        if value_end is None:
            break
        if key == "name" and name is None:
            name = _decoded(text[value:value_end])
        position = value_end
    whole = "{}" if arguments is None and end is not None else arguments or ""
    return _Object(Call(name, whole) if name else None, end, arguments is not None)


def _arguments(value: str, *, is_whole: bool) -> str:
    """Some models write them as a string of JSON."""
    if not value.startswith('"'):
        return value
    return _decoded(value) or "" if is_whole else ""


def _decoded(quoted: str) -> str | None:
    try:
        value = json.loads(quoted)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _value_end(text: str, start: int) -> int | None:
    """Index behind the JSON value that begins there; None while it is not whole."""
    first = text[start : start + 1]
    if first not in ('"', "{", "["):
        return next((i for i in range(start, len(text)) if text[i] in ",}]" + _SPACE), None)
    depth, position = 0, start
    is_quoted = False
    while position < len(text):
        letter = text[position]
        if is_quoted:
            position += letter == "\\"
            is_quoted = letter != '"'
        elif letter == '"':
            is_quoted = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
        position += 1
        if depth == 0 and not is_quoted:
            return position if position <= len(text) else None
    return None


def _skip(text: str, position: int, also: str = "") -> int:
    while position < len(text) and text[position] in _SPACE + also:
        position += 1
    return position


def _without_begun(text: str, mark: str) -> str:
    """Without an end with which the mark could begin."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return text[:-length]
    return text


def _content(text: str, *, has_calls: bool, is_end: bool) -> str:
    """White space alone is content only where nothing else comes."""
    return text if text.strip() or (is_end and not has_calls) else ""
