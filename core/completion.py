"""OpenAI's completion requests and answers: what a body asks for, checked, and the body that is sent back.

Knows `/v1/chat/completions` and `/v1/completions`. What is understood but not offered is refused by name; fields that
change nothing about the answer (`user`, `metadata`, `store`, …) are accepted. Knows nothing of tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest, Unsupported
from core.protocol import Finished, Generate, Sampling

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
Stop = str | Annotated[list[str], Meta(max_length=16)] | None


class _Body(msgspec.Struct):
    """Fields of both endpoints. The unsupported ones are listed so that they can be refused by name."""

    model: Annotated[str, Meta(min_length=1)]
    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    seed: Seed | None = None
    stop: Stop = None
    stream: bool | None = None
    ignore_eos: bool | None = None
    n: Positive | None = None
    logprobs: bool | int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


class _ChatBody(_Body, kw_only=True):
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None


class _TextBody(_Body, kw_only=True):
    prompt: str | list[str | TokenId]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


_chat_decoder = msgspec.json.Decoder(_ChatBody)
_text_decoder = msgspec.json.Decoder(_TextBody)

# Values that mean "off"; anything else is refused.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "n": (None, 1),
        "logprobs": (None, False),
        "frequency_penalty": (None, 0),
        "presence_penalty": (None, 0),
        "logit_bias": (None, {}),
        "tools": (None, []),
        "functions": (None, []),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "echo": (None, False),
        "suffix": (None, ""),
        "best_of": (None, 1),
        "stream": (None, False),
    }
)

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request; exactly one of `messages`, `text` and `token_ids` is set."""

    model: str
    sampling: Sampling
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    token_ids: list[int] | None = None

    def to_generate(self, request_id: str, *, priority: int, stream: bool = False) -> Generate:
        return Generate(
            id=request_id,
            model=self.model,
            sampling=self.sampling,
            messages=self.messages,
            text=self.text,
            token_ids=self.token_ids,
            priority=priority,
            stream=stream,
        )


def parse_body(endpoint: str, body: bytes) -> CompletionRequest:
    """Raises InvalidRequest naming the field that is wrong, Unsupported for what is not offered."""
    try:
        if endpoint == CHAT_ENDPOINT:
            return _from_chat(_chat_decoder.decode(body))
        if endpoint == TEXT_ENDPOINT:
            return _from_text(_text_decoder.decode(body))
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        field = _field(reason, path)
        raise InvalidRequest(f"{field}: {reason}", param=field, code="invalid_type") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"body: expected a JSON object: {error}", param="body", code="invalid_json") from error
    raise InvalidRequest(
        f"expected an endpoint of {', '.join(ENDPOINTS)}, got {endpoint!r}", param="endpoint", code="invalid_endpoint"
    )


def _field(reason: str, path: str) -> str:
    """`$.temperature` -> `temperature`; a missing field stands in the reason."""
    if path:
        return path.strip("`$.").strip("`") or "body"
    _, _, quoted = reason.partition("required field `")
    return quoted.rstrip("`") or "body"


def _from_chat(body: _ChatBody) -> CompletionRequest:
    _refuse_unsupported(body)
    for index, message in enumerate(body.messages):
        _check_message(index, message)
    sampling = _sampling(body, body.max_completion_tokens or body.max_tokens)
    return CompletionRequest(body.model, sampling, messages=body.messages)


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
    sampling = _sampling(body, body.max_tokens or DEFAULT_TEXT_MAX_TOKENS)
    prompt = body.prompt
    if isinstance(prompt, str):
        return CompletionRequest(body.model, sampling, text=prompt)
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return CompletionRequest(body.model, sampling, text=prompt[0])
    token_ids = [token for token in prompt if isinstance(token, int)]
    if token_ids and len(token_ids) == len(prompt):
        return CompletionRequest(body.model, sampling, token_ids=token_ids)
    raise Unsupported(
        "expected one prompt (a text or a list of token ids); send one request per prompt", param="prompt"
    )


def _refuse_unsupported(body: _Body) -> None:
    for name, accepted in _UNSUPPORTED.items():
        value = getattr(body, name, None)
        if value not in accepted:
            raise Unsupported(
                f"{name}={value!r} is not offered; leave it out or set it to {accepted[-1]!r}", param=name
            )


def _sampling(body: _Body, max_tokens: int | None) -> Sampling:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        seed=body.seed,
        stop=tuple(part for part in stop if part),
        ignore_eos=bool(body.ignore_eos),
    )


def response_body(endpoint: str, request_id: str, model: str, answer: Finished, created: int) -> dict[str, Any]:
    """The answer as OpenAI writes it. `created`: seconds since 1970."""
    is_chat = endpoint == CHAT_ENDPOINT
    usage = answer.usage
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{request_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [_choice(is_chat, answer)],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
    }


def _choice(is_chat: bool, answer: Finished) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": answer.finish_reason}
    if is_chat:
        choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
    else:
        choice["text"] = answer.text
    return choice


def error_body(
    code: str, message: str, *, param: str | None = None, kind: str = "invalid_request_error"
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
