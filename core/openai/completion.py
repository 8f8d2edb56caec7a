"""OpenAI's completion requests: what a body asks for, checked. The answers are in `core.openai.answer`.

Knows `/v1/chat/completions` and `/v1/completions`, and the fields that vLLM adds to them (`top_k`, `min_p`,
`repetition_penalty`, `min_tokens`, `stop_token_ids`, `ignore_eos`). What is understood but not offered is refused by
name; fields that change nothing about the answer (`user`, `metadata`, `store`, …) are accepted. It knows no tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest, Unsupported
from core.openai.decoding import decode
from core.openai.tools import NO_TOOLS, ToolUse, read_tools
from core.protocol import Generate, Sampling

CHAT_ENDPOINT = "/v1/chat/completions"
TEXT_ENDPOINT = "/v1/completions"
ENDPOINTS = (CHAT_ENDPOINT, TEXT_ENDPOINT)

DEFAULT_TEXT_MAX_TOKENS = 16  # OpenAI's default for /v1/completions

INT32_MAX = 2**31 - 1
Positive = Annotated[int, Meta(ge=1, le=INT32_MAX)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=INT32_MAX)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Stop = str | Annotated[list[str], Meta(max_length=16)] | None

MAX_TOP_LOGPROBS = 20
MAX_ANSWERS = 128
MAX_RESUME_SECONDS = 3600
JSON_OBJECT_SCHEMA = '{"type":"object"}'


class StreamOptions(msgspec.Struct, frozen=True):
    """include_usage: a last chunk with the usage of all. continuous_usage_stats: vLLM's, the usage so far in every
    chunk. resume_seconds: ours, how long the request goes on for a client that left and may come back."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None
    resume_seconds: Annotated[float, Meta(ge=0, le=MAX_RESUME_SECONDS)] | None = None


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """Fields of both endpoints. The unsupported ones are listed so that they can be refused by name, and those that
    change nothing about the answer so that they are known: what is unknown is refused, as OpenAI does."""

    model: Annotated[str, Meta(min_length=1)]
    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    seed: Seed | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    stop_token_ids: list[TokenId] | None = None
    logit_bias: dict[str, Bias] | None = None
    response_format: dict[str, Any] | None = None
    best_of: int | None = None
    prompt_logprobs: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    include_stop_str_in_output: Any = None
    continue_final_message: Any = None
    chat_template_kwargs: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    use_beam_search: Any = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    request_id: Any = None
    cache_salt: Any = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Any = None
    add_special_tokens: Any = None


class _ChatBody(_Body, kw_only=True):
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    function_call: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    prediction: Any = None
    moderation: Any = None
    web_search_options: Any = None
    add_generation_prompt: Literal[True] | None = None


class _TextBody(_Body, kw_only=True):
    prompt: str | list[str | TokenId]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | bool | None = None
    echo: bool | None = None
    suffix: str | None = None


_chat_decoder = msgspec.json.Decoder(_ChatBody)
_text_decoder = msgspec.json.Decoder(_TextBody)

# Values that mean "off"; anything else is refused.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "functions": (None, []),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "function_call": (None, "none", "auto"),
        "web_search_options": (None,),
        "echo": (None, False),
        "suffix": (None, ""),
        "prompt_logprobs": (None,),
        "bad_words": (None, []),
        "allowed_token_ids": (None, []),
        "include_stop_str_in_output": (None, False),
        "continue_final_message": (None, False),
        "chat_template_kwargs": (None, {}),
        "structured_outputs": (None,),
        "guided_json": (None,),
        "guided_regex": (None,),
        "guided_choice": (None,),
        "guided_grammar": (None,),
        "use_beam_search": (None, False),
    }
)

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request; exactly one of `messages`, `text` and `token_ids` is set. streaming: None is one body."""

    model: str
    sampling: Sampling
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    num_answers: int = 1
    streaming: StreamOptions | None = None
    tool_use: ToolUse = NO_TOOLS

    def to_generate(self, request_id: str, *, priority: int, stream: bool = False, prefix_scope: str = "") -> Generate:
        """prefix_scope: whose prompts may share what was computed of them: a tenant."""
        return Generate(
            id=request_id,
            model=self.model,
            sampling=self.sampling,
            messages=self.messages,
            text=self.text,
            token_ids=self.token_ids,
            priority=priority,
            stream=stream,
            num_answers=self.num_answers,
            prefix_scope=prefix_scope,
            tools=self.tool_use.tools,
            tool_format=self.tool_use.format,
        )


def body_type(endpoint: str) -> type[msgspec.Struct]:
    """The struct of an endpoint's bodies, for the document that describes them."""
    return _ChatBody if endpoint == CHAT_ENDPOINT else _TextBody


def parse_body(endpoint: str, body: bytes) -> CompletionRequest:
    """Raises InvalidRequest naming the field that is wrong, Unsupported for what is not offered."""
    try:
        if endpoint == CHAT_ENDPOINT:
            return _from_chat(decode(_chat_decoder, body))
        if endpoint == TEXT_ENDPOINT:
            return _from_text(decode(_text_decoder, body))
    except RecursionError as error:  # in a schema, which is walked through
        raise InvalidRequest("body: expected less nesting", param="body", code="invalid_json") from error
    raise InvalidRequest(
        f"expected an endpoint of {', '.join(ENDPOINTS)}, got {endpoint!r}", param="endpoint", code="invalid_endpoint"
    )


def _from_chat(body: _ChatBody) -> CompletionRequest:
    _refuse_unsupported(body)
    for index, message in enumerate(body.messages):
        _check_message(index, message)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs: expected logprobs to be true beside it", param="top_logprobs")
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = _sampling(body, body.max_completion_tokens or body.max_tokens, num_logprobs)
    tool_use = read_tools(body.tools, body.tool_choice, is_parallel=body.parallel_tool_calls is not False)
    if tool_use.schema is not None:
        if sampling.json_schema is not None:
            raise InvalidRequest(
                "response_format: expected none beside a tool_choice that forces a call", param="response_format"
            )
        sampling = msgspec.structs.replace(sampling, json_schema=tool_use.schema)
    request = CompletionRequest(body.model, sampling, messages=body.messages, num_answers=body.n or 1)
    return replace(request, streaming=_streaming(body), tool_use=tool_use)


def _check_message(index: int, message: Mapping[str, Any]) -> None:
    if message.get("role") not in ROLES:
        raise InvalidRequest(
            f"expected a role of {', '.join(sorted(ROLES))}, got {message.get('role')!r}",
            param=f"messages[{index}].role",
        )
    content = message.get("content")
    if not isinstance(content, str | list) and not (content is None and message["role"] == "assistant"):
        raise InvalidRequest(
            f"expected content of text or a list of parts, got {type(content).__name__}",
            param=f"messages[{index}].content",
        )


def _from_text(body: _TextBody) -> CompletionRequest:
    _refuse_unsupported(body)
    request = _text_request(body)
    return replace(request, streaming=_streaming(body))


def _streaming(body: _Body) -> StreamOptions | None:
    """Raises InvalidRequest where there are options and no stream."""
    if body.stream:
        return body.stream_options or StreamOptions()
    if body.stream_options is not None:
        raise InvalidRequest("stream_options: expected stream to be true beside it", param="stream_options")
    return None


class _Prompts(msgspec.Struct):
    prompt: Any = None
    n: Any = None


_prompts_decoder = msgspec.json.Decoder(_Prompts)


def split_prompts(endpoint: str, body: bytes) -> list[bytes]:
    """A body for each prompt of one that has several; `parse_body` finds out what is wrong with them. Raises
    InvalidRequest where there would be too many answers."""
    if endpoint != TEXT_ENDPOINT:
        return [body]
    asked = decode(_prompts_decoder, body)
    prompts = asked.prompt if isinstance(asked.prompt, list) else []
    are_texts = len(prompts) > 1 and all(isinstance(prompt, str) for prompt in prompts)
    if not are_texts and not (prompts and all(isinstance(prompt, list) for prompt in prompts)):
        return [body]
    num_answers = len(prompts) * (asked.n if isinstance(asked.n, int) else 1)
    if num_answers > MAX_ANSWERS:
        raise InvalidRequest(
            f"prompt: expected at most {MAX_ANSWERS} answers in one request, got {num_answers}; submit a batch",
            param="prompt",
        )
    fields = msgspec.json.decode(body)
    return [msgspec.json.encode({**fields, "prompt": prompt}) for prompt in prompts]


def _text_request(body: _TextBody) -> CompletionRequest:
    num_answers = body.n or 1
    num_logprobs = None if body.logprobs is None or body.logprobs is False else int(body.logprobs)
    sampling = _sampling(body, body.max_tokens or DEFAULT_TEXT_MAX_TOKENS, num_logprobs)
    prompt = body.prompt
    if isinstance(prompt, str):
        return CompletionRequest(body.model, sampling, text=prompt, num_answers=num_answers)
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return CompletionRequest(body.model, sampling, text=prompt[0], num_answers=num_answers)
    token_ids = [token for token in prompt if isinstance(token, int)]
    if token_ids and len(token_ids) == len(prompt):
        return CompletionRequest(body.model, sampling, token_ids=token_ids, num_answers=num_answers)
    raise Unsupported(
        "expected one prompt (a text or a list of token ids); in a batch, give each prompt a row", param="prompt"
    )


def _refuse_unsupported(body: _Body) -> None:
    if body.best_of not in (None, body.n or 1):
        raise Unsupported(f"best_of={body.best_of} is not offered; leave it out, or ask for n answers", param="best_of")
    if body.min_tokens and body.max_tokens and body.min_tokens > body.max_tokens:
        raise InvalidRequest(f"min_tokens: expected at most max_tokens={body.max_tokens}", param="min_tokens")
    for name, accepted in _UNSUPPORTED.items():
        value = getattr(body, name, None)
        if value not in accepted:
            raise Unsupported(
                f"{name}={value!r} is not offered; leave it out or set it to {accepted[-1]!r}", param=name
            )


def _sampling(body: _Body, max_tokens: int | None, num_logprobs: int | None) -> Sampling:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        seed=body.seed,
        stop=tuple(part for part in stop if part),
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        min_tokens=body.min_tokens or 0,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body.logit_bias),
        num_logprobs=num_logprobs,
        json_schema=_json_schema(body.response_format),
    )


def _logit_bias(given: Mapping[str, float] | None) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in (given or {}).items()}
    except ValueError:
        raise InvalidRequest("logit_bias: expected token ids as keys", param="logit_bias") from None


def _json_schema(response_format: Mapping[str, Any] | None) -> str | None:
    """The schema as text; None for free text. Raises InvalidRequest where the format says neither."""
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return JSON_OBJECT_SCHEMA
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return msgspec.json.encode(schema).decode()
    raise InvalidRequest(
        'response_format: expected {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", '
        f'"json_schema": {{"name": …, "schema": {{…}}}}}}, got {response_format!r}',
        param="response_format",
    )
