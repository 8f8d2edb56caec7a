"""A request for a response: its body checked, and the chat completion that answers it.

Fields that OpenAI's API has and Millrace does not offer are refused by name where they would change the answer, unknown
ones always. The fields of sampling, vLLM's among them, are those of `/v1/chat/completions`, which checks them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest, Unsupported
from core.openai.completion import CHAT_ENDPOINT, Fraction, Positive, Temperature, parse_body
from core.openai.decoding import decode
from core.openai.responses.items import Item, chat_messages, read_input

LOGPROBS = "message.output_text.logprobs"
_ACCEPTED_INCLUDES = (LOGPROBS, "reasoning.encrypted_content")

MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]


class _Text(msgspec.Struct):
    format: dict[str, Any] | None = None


class ResponseBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(min_length=1)]
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    text: _Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    user: str | None = None
    reasoning: dict[str, Any] | None = None
    conversation: Any = None
    prompt: Any = None
    access_programs: Any = None
    background_options: Any = None
    context_management: Any = None
    image: Any = None
    max_tool_calls: Any = None
    moderation: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    stream_options: Any = None
    seed: Any = None
    stop: Any = None
    stop_token_ids: Any = None
    top_k: Any = None
    min_p: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None
    repetition_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None


_decoder = msgspec.json.Decoder(ResponseBody)

# Taken over as they are: what chat completions understand beside OpenAI's own fields.
_EXTENSIONS = (
    "seed",
    "stop",
    "stop_token_ids",
    "top_k",
    "min_p",
    "min_tokens",
    "ignore_eos",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)
# Where a field of a chat completion came from.
_ORIGINS: Mapping[str, str] = MappingProxyType(
    {"messages": "input", "response_format": "text.format", "max_completion_tokens": "max_output_tokens"}
)


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """items: of its own input, without what came before.  echo: fields of the response that repeat the request."""

    model: str
    items: list[Item]
    previous_id: str | None
    is_background: bool
    is_stored: bool
    is_streamed: bool
    has_tools: bool
    echo: dict[str, Any]
    chat: dict[str, Any]

    def chat_body(self, earlier: Sequence[Item]) -> bytes:
        """The chat completion that answers it. earlier: items of the conversation so far. Raises InvalidRequest."""
        instructions = self.echo["instructions"]
        messages = [{"role": "system", "content": instructions}] if instructions else []
        messages += chat_messages([*earlier, *self.items])
        body = msgspec.json.encode({**self.chat, "messages": messages})
        try:
            parse_body(CHAT_ENDPOINT, body)
        except InvalidRequest as error:
            raise type(error)(error.message, param=_origin(error.param), code=error.code) from error
        return body


def _origin(param: str | None) -> str | None:
    name = (param or "").partition("[")[0].partition(".")[0]
    return _ORIGINS.get(name, param)


def parse_response_request(body: bytes) -> ResponseRequest:
    """Raises InvalidRequest naming the field that is wrong, Unsupported for what is not offered."""
    parsed = decode(_decoder, body)
    _refuse_unsupported(parsed)
    extensions = {name: value for name in _EXTENSIONS if (value := getattr(parsed, name)) is not None}
    is_stored = parsed.store is not False
    if parsed.background and not is_stored:
        raise InvalidRequest("background: expected store to be true beside it", param="store")
    return ResponseRequest(
        model=parsed.model,
        items=read_input(parsed.input),
        previous_id=parsed.previous_response_id,
        is_background=bool(parsed.background),
        is_stored=is_stored,
        is_streamed=bool(parsed.stream),
        has_tools=bool(parsed.tools),
        echo=_echo(parsed, is_stored=is_stored),
        chat=_chat(parsed) | extensions,
    )


def _refuse_unsupported(body: ResponseBody) -> None:
    for name in ("conversation", "prompt"):
        if getattr(body, name) is not None:
            raise Unsupported(f"{name} is not offered; send the items, or previous_response_id", param=name)
    if body.truncation == "auto":
        raise Unsupported("truncation='auto' is not offered; shorten the input", param="truncation")
    effort = (body.reasoning or {}).get("effort")
    if effort not in (None, "none"):
        raise Unsupported(f"reasoning.effort={effort!r} is not offered; leave it out", param="reasoning.effort")
    for name in body.include or ():
        if name not in _ACCEPTED_INCLUDES:
            raise Unsupported(f"include: {name!r} is not offered; leave it out", param="include")


def _echo(body: ResponseBody, *, is_stored: bool) -> dict[str, Any]:
    return {
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": is_stored,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": _format(body) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _format(body: ResponseBody) -> dict[str, Any] | None:
    return None if body.text is None else body.text.format


def _chat(body: ResponseBody) -> dict[str, Any]:
    has_logprobs = LOGPROBS in (body.include or ())
    fields: dict[str, Any] = {
        "model": body.model,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": True if has_logprobs else None,
        "top_logprobs": body.top_logprobs if has_logprobs else None,
        "response_format": _response_format(_format(body)),
        "stream": True if body.stream else None,
        "tools": [_chat_tool(index, tool) for index, tool in enumerate(body.tools or ())] or None,
        "tool_choice": _chat_choice(body.tool_choice) if body.tools else None,
        "parallel_tool_calls": body.parallel_tool_calls if body.tools else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _response_format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """A schema stands beside its name here, inside of `json_schema` there."""
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


def _chat_tool(index: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise Unsupported(f"tools[{index}]: expected type `function`, got {tool.get('type')!r}", param="tools")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _chat_choice(given: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(given, dict) and given.get("type") == "function":
        return {"type": "function", "function": {"name": given.get("name")}}
    return given
