"""Answers as OpenAI streams them: the chunks that bring a client from what it has to what there is. No I/O.

A chunk is made of the difference between the client's progress and the answer so far, so that it does not matter in
which pieces the answer came, nor whether the client has been here from the beginning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from core.openai.answer import answer_id
from core.openai.completion import CHAT_ENDPOINT, StreamOptions
from core.openai.message import Call, Message, call_id
from core.openai.progress import ChoiceProgress, Progress

ROLE = {"role": "assistant", "content": "", "refusal": None}


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands in every chunk. request_id: as in the whole answer. created: seconds since 1970."""

    endpoint: str
    request_id: str
    model: str
    created: int
    options: StreamOptions

    @property
    def is_chat(self) -> bool:
        return self.endpoint == CHAT_ENDPOINT


@dataclass(frozen=True, slots=True)
class Standing:
    """A choice as far as it has come. finish_reason: None while it grows. logprobs: of all its tokens, as OpenAI writes
    them, or None."""

    message: Message
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """data: a chunk. id: the progress of a client that has it."""

    id: str
    data: dict[str, Any]


class ChunkWriter:
    """progress: is brought forward by every event."""

    def __init__(self, heading: Heading, progress: Progress) -> None:
        self.progress = progress
        self._heading = heading

    def advance(self, index: int, standing: Standing, usage: dict[str, Any] | None) -> Iterator[Event]:
        """The events that bring choice `index` there. usage: so far, written where it is asked for."""
        choice = self.progress.choices[index]
        if choice.is_finished:
            return
        parts = self._chat_parts(index, choice, standing) if self._heading.is_chat else _text_parts(choice, standing)
        for part, logprobs in parts:
            yield self._event([_choice(index, part, logprobs, None)], usage)
        if standing.finish_reason is not None:
            choice.has_begun = choice.is_finished = True
            part = {"delta": {}} if self._heading.is_chat else {"text": ""}
            yield self._event([_choice(index, part, None, standing.finish_reason)], usage)

    def end(self, usage: dict[str, Any]) -> Iterator[Event]:
        """The chunk behind the last one, where the usage is asked for."""
        if self._heading.options.include_usage and not self.progress.has_usage:
            self.progress.has_usage = True
            yield self._event([], usage)

    def _chat_parts(self, index: int, choice: ChoiceProgress, standing: Standing) -> Iterator[Any]:
        if not choice.has_begun:
            choice.has_begun = True
            yield {"delta": dict(ROLE)}, None
        text, logprobs = _news(choice, standing)
        if text or logprobs:
            yield {"delta": {"content": text}}, logprobs
        for number, call in enumerate(standing.message.calls):
            for function in _call_news(choice, number, call.name, call.arguments):
                delta: dict[str, Any] = {"index": number, **function}
                if "name" in function["function"]:
                    identity = call_id(self._heading.request_id, index, number)
                    delta = {"index": number, "id": identity, "type": "function", **function}
                yield {"delta": {"tool_calls": [delta]}}, None

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> Event:
        heading = self._heading
        data: dict[str, Any] = {
            "id": answer_id(heading.endpoint, heading.request_id),
            "object": "chat.completion.chunk" if heading.is_chat else "text_completion",
            "created": heading.created,
            "model": heading.model,
            "choices": choices,
        }
        options = heading.options
        if options.include_usage or options.continuous_usage_stats:
            data["usage"] = usage if options.continuous_usage_stats or not choices else None
        return Event(str(self.progress), data)


def _text_parts(choice: ChoiceProgress, standing: Standing) -> Iterator[Any]:
    text, logprobs = _news(choice, standing)
    if text or logprobs:
        choice.has_begun = True
        yield {"text": text}, logprobs


def _news(choice: ChoiceProgress, standing: Standing) -> tuple[str, dict[str, Any] | None]:
    text = standing.message.content[choice.content :]
    choice.content += len(text)
    if standing.logprobs is None:
        return text, None
    num_tokens = max(map(len, filter(None, standing.logprobs.values())), default=0)
    if num_tokens <= choice.logprobs:
        return text, None
    logprobs = {name: values and values[choice.logprobs :] for name, values in standing.logprobs.items()}
    choice.logprobs = num_tokens
    return text, logprobs


def _call_news(choice: ChoiceProgress, number: int, name: str, arguments: str) -> Iterator[dict[str, Any]]:
    if number == len(choice.arguments):
        choice.arguments.append(0)
        yield {"function": {"name": name, "arguments": ""}}
    rest = arguments[choice.arguments[number] :]
    if rest:
        choice.arguments[number] += len(rest)
        yield {"function": {"arguments": rest}}


def _choice(index: int, part: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None) -> Any:
    return {"index": index, **part, "logprobs": logprobs, "finish_reason": finish_reason}


def standings_of(bodies: Sequence[dict[str, Any]]) -> list[Standing]:
    """The choices of whole answers, one body after the other."""
    return [_standing(choice) for body in bodies for choice in body["choices"]]


def _standing(choice: dict[str, Any]) -> Standing:
    if "text" in choice:
        return Standing(Message(choice["text"]), choice["logprobs"], choice["finish_reason"])
    message = choice["message"]
    calls = (call["function"] for call in message.get("tool_calls") or ())
    said = Message(message["content"] or "", tuple(Call(call["name"], call["arguments"]) for call in calls))
    return Standing(said, choice["logprobs"], choice["finish_reason"])


def whole_body(bodies: Sequence[str]) -> str:
    """One answer out of those to several prompts; their choices follow each other."""
    if len(bodies) == 1:
        return bodies[0]
    answers: list[dict[str, Any]] = [msgspec.json.decode(body) for body in bodies]
    choices = [choice for answer in answers for choice in answer["choices"]]
    for index, choice in enumerate(choices):
        choice["index"] = index
    return msgspec.json.encode({**answers[0], "choices": choices, "usage": total_usage(answers)}).decode()


def total_usage(bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of several answers together."""
    usages = [body["usage"] for body in bodies]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    total = {name: sum(usage[name] for usage in usages) for name in names}
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    return {**total, "prompt_tokens_details": {"cached_tokens": cached}}


def partial_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
