"""OpenAI's bodies for answers and errors of the completion endpoints. Knows nothing of requests and of HTTP."""

import codecs
from collections.abc import Sequence
from typing import Any

from core.openai.completion import CHAT_ENDPOINT
from core.openai.message import Call, call_id
from core.openai.tool_calls import read_message
from core.protocol import Choice, Finished, TokenLogprob, TopToken


def response_body(endpoint: str, request_id: str, model: str, answer: Finished, created: int) -> dict[str, Any]:
    """The answer as OpenAI writes it. `created`: seconds since 1970."""
    is_chat = endpoint == CHAT_ENDPOINT
    usage = answer.usage
    choices = [
        _chat_choice(choice, request_id, index, answer.tool_format) if is_chat else _text_choice(choice, index)
        for index, choice in enumerate(answer.choices)
    ]
    return {
        "id": answer_id(endpoint, request_id),
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
    }


def answer_id(endpoint: str, request_id: str) -> str:
    return f"{'chatcmpl' if endpoint == CHAT_ENDPOINT else 'cmpl'}-{request_id}"


def _chat_choice(choice: Choice, request_id: str, index: int, tool_format: str) -> dict[str, Any]:
    said = read_message(tool_format, choice.text, is_end=True)
    message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
    finish_reason = choice.finish_reason
    if said.calls:
        message |= {"content": said.content or None, "tool_calls": tool_calls(said.calls, request_id, index)}
        finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
    return {
        "index": index,
        "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs),
        "finish_reason": finish_reason,
        "message": message,
    }


def tool_calls(calls: Sequence[Call], request_id: str, index: int) -> list[dict[str, Any]]:
    """Of choice `index`."""
    return [
        {
            "id": call_id(request_id, index, number),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(calls)
    ]


def _text_choice(choice: Choice, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "logprobs": None if choice.logprobs is None else text_logprobs(choice.logprobs),
        "finish_reason": choice.finish_reason,
        "text": choice.text,
    }


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [{**_chat_token(token), "top_logprobs": [_chat_token(top) for top in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _chat_token(token: TokenLogprob | TopToken) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}


class TextOffsets:
    """How many characters of an answer are complete before each of its tokens, which come in order. length: how many
    are complete by now."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.length = 0

    def before(self, token: bytes) -> int:
        offset = self.length
        self.length += len(self._decoder.decode(token))
        return offset


def text_logprobs(tokens: Sequence[TokenLogprob], offsets: TextOffsets | None = None) -> dict[str, Any]:
    """offsets: of an answer that grows, behind the tokens before these."""
    offsets = offsets or TextOffsets()
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{top.text: top.logprob for top in token.top} for token in tokens],
        "text_offset": [offsets.before(token.bytes) for token in tokens],
    }


def error_body(
    code: str, message: str, *, param: str | None = None, kind: str = "invalid_request_error"
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
