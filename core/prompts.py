"""From messages to token ids and back, without torch and without transformers: `tokenizers` and Jinja alone.

A `PromptCodec` reads a model directory and gives the ids that transformers' `AutoTokenizer` would give for a text or a
chat. A `TextStream` turns answer tokens into text as they come: only whole characters, at a cost that does not grow
with the length of the answer.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Tokenizer

from core.chat_template import ChatTemplate
from core.detokenize import ByteLevelStream, TokenBytes, WindowStream
from core.errors import ConfigurationError, ContextLengthExceeded, InvalidRequest, Unsupported
from core.openai.tool_calls import MARKS, ToolFormat

_LONG_TEXT_BYTES = 16_384
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class TextStream(Protocol):
    def push(self, token_ids: Sequence[int]) -> str:
        """The text that has become certain: whole characters only."""

    def finish(self) -> str:
        """What was held back. All pieces together are `PromptCodec.decode` of all tokens."""


class PromptCodec:
    """Tokenizer and chat template of one model. Safe to share between threads."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, tool_template: ChatTemplate | None = None
    ) -> None:
        """tool_template: for requests with tools, where the model has one of its own."""
        self._tokenizer = tokenizer
        self._template = template
        self._tool_template = tool_template or template
        self._longest_token_bytes = 0  # until somebody wants to know
        decoder = json.loads(tokenizer.to_str())["decoder"]
        self._is_byte_level = _decoder_types(decoder) == {"ByteLevel"}
        special_ids = (i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        self._token_bytes = TokenBytes(tokenizer, frozenset(special_ids), is_byte_level=self._is_byte_level)

    @classmethod
    def load(cls, directory: Path) -> "PromptCodec":
        """Raises ConfigurationError where the directory has no readable `tokenizer.json`."""
        tokenizer = _load_tokenizer(directory / "tokenizer.json")
        config = _load_tokenizer_config(directory)
        special_tokens = _special_tokens(config)
        _add_special_tokens(tokenizer, config, special_tokens)
        names = {name: str(token) for name, token in special_tokens.items()}
        sources = [_template_source(directory, config, name) for name in ("default", "tool_use")]
        template, tool_template = (None if source is None else ChatTemplate(source, names) for source in sources)
        return cls(tokenizer, template, tool_template)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode_text(self, text: str, max_tokens: int | None = None) -> list[int]:
        """With the special tokens that the tokenizer adds by itself. Raises ContextLengthExceeded where the text is so
        long that it cannot have `max_tokens` or fewer; what it gives may still be more."""
        return self._encode(text, add_special_tokens=True, max_tokens=max_tokens)

    def encode_fragment(self, text: str) -> list[int]:
        """Of a text inside another one: no special tokens are added."""
        return self._encode(text, add_special_tokens=False)

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        max_tokens: int | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> list[int]:
        """As `encode_text`. Raises InvalidRequest where there is no chat template, or where it refuses the messages,
        Unsupported where it knows no tools."""
        return self._encode(self.render_chat(messages, tools), add_special_tokens=False, max_tokens=max_tokens)

    def render_chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """As `encode_chat`, before tokenization."""
        template = self._tool_template if tools else self._template
        if template is None:
            raise InvalidRequest(
                "this model has no chat template; send a prompt to /v1/completions instead", param="messages"
            )
        if tools and not template.takes_tools:
            raise Unsupported(
                "tools: this model's chat template knows none; leave them out, or ask a model that has them",
                param="tools",
            )
        return template.render(plain_messages(messages), tools)

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes tool calls, as far as its template tells."""
        return ToolFormat.NONE if self._tool_template is None else self._tool_template.tool_format

    def decode(self, token_ids: Sequence[int]) -> str:
        """Without special tokens; spaces stay as they are."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def stream(self, *, keeps_marks: bool = False) -> TextStream:
        """keeps_marks: special tokens that mark tool calls stay in the text."""
        kept = self._mark_ids if keeps_marks else frozenset()
        if self._is_byte_level:
            return ByteLevelStream(self._token_bytes, kept)
        return WindowStream(self._tokenizer, self._token_bytes.special_ids, kept)

    @cached_property
    def _mark_ids(self) -> frozenset[int]:
        return frozenset(one for one in self.special_ids if self._tokenizer.id_to_token(one) in MARKS)

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are never part of a text."""
        return self._token_bytes.special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text, also half a character; of a special token its name."""
        return self._token_bytes(token_id)

    def _encode(self, text: str, *, add_special_tokens: bool, max_tokens: int | None = None) -> list[int]:
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"expected text that UTF-8 can hold, got a lone surrogate: {error}") from error
        if num_bytes < _LONG_TEXT_BYTES:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        if max_tokens is not None:
            self._check_size(num_bytes, max_tokens)
        # A megabyte takes a second; other threads run meanwhile.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def _check_size(self, num_bytes: int, max_tokens: int) -> None:
        """Refuses what cannot fit, however well it tokenizes, before anybody spends a minute on finding out."""
        if self._longest_token_bytes == 0:
            names = self._tokenizer.get_vocab(with_added_tokens=True)
            self._longest_token_bytes = max(len(name.encode()) for name in names)
        if num_bytes > max_tokens * self._longest_token_bytes:
            raise ContextLengthExceeded(
                f"the prompt has {num_bytes} bytes, more than {max_tokens} tokens of this model can hold; "
                "shorten it, or use a model with a longer context"
            )


def answer_room(num_prompt_tokens: int, context_tokens: int) -> int:
    """How many tokens an answer may have. Raises ContextLengthExceeded where not even one fits."""
    room = context_tokens - num_prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt_tokens} tokens, but prompt and answer together may have {context_tokens}; "
            "shorten it, or use a model with a longer context"
        )
    return room


def plain_messages(messages: object) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: text joined from its parts, no field that is None."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages: expected a list with at least one message", param="messages")
    return [_plain_message(message, index) for index, message in enumerate(messages)]


def _plain_message(message: object, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f"messages[{index}]: expected an object with a role and a content", param="messages")
    plain = {str(key): value for key, value in message.items() if value is not None}
    if "tool_calls" in plain:
        plain["tool_calls"] = _plain_calls(plain["tool_calls"], index)
    if "content" in plain:
        plain["content"] = _plain_content(plain["content"], index)
    reasoning = next((plain[field] for field in _REASONING_FIELDS if field in plain), None)
    if reasoning is not None:  # templates know it under either name
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _plain_calls(calls: object, index: int) -> list[dict[str, Any]]:
    """With arguments as objects: OpenAI writes them as text, templates write them out as JSON."""
    where = f"messages[{index}].tool_calls"
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where}: expected a list of calls, got {type(calls).__name__}", param="messages")
    plain = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"{where}: expected calls of functions with a name and arguments", param="messages")
        arguments = function.get("arguments", {})
        plain.append({**call, "function": {**function, "arguments": _plain_arguments(arguments)}})
    return plain


def _plain_arguments(arguments: object) -> object:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):  # what a model wrote need not be JSON
        return arguments


def _plain_content(content: object, index: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"messages[{index}].content: expected a string or a list of text parts, got {type(content).__name__}",
            param="messages",
        )
    return "".join(_part_text(part, f"messages[{index}].content[{number}]") for number, part in enumerate(content))


def _part_text(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise InvalidRequest(
            f'{where}: expected {{"type": "text", "text": "…"}}, got type {kind!r}; only text can be answered',
            param="messages",
        )
    return text


def _load_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ConfigurationError(
            f"expected a fast tokenizer at {path}, found none; save it there with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ConfigurationError(f"{path} is not a readable tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _load_tokenizer_config(directory: Path) -> dict[str, Any]:
    config = _load_json(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # older directories keep the names of the special tokens apart
        config |= _load_json(directory / "special_tokens_map.json")
    return config


def _load_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _special_tokens(config: dict[str, Any]) -> dict[str, AddedToken]:
    """`bos_token`, `eos_token`, … -> token, for all that the configuration names."""
    values = {name: value for name, value in config.items() if name.endswith("_token")}
    return {name: _as_token(value) for name, value in values.items() if isinstance(value, str | dict)}


def _as_token(value: str | dict[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    flags = {name: bool(value[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    return AddedToken(value["content"], special=True, **flags)


def _add_special_tokens(tokenizer: Tokenizer, config: dict[str, Any], named: dict[str, AddedToken]) -> None:
    """What the configuration calls special is special, whether or not `tokenizer.json` says so.

    Its `add_bos_token` counts for nothing beside a `tokenizer.json`, which says itself what to add.
    """
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    values = more.values() if isinstance(more, dict) else more
    tokenizer.add_special_tokens([*named.values(), *map(_as_token, values)])


def _template_source(directory: Path, config: dict[str, Any], name: str) -> str | None:
    """A file of its own comes first; where there are none with names, the only one is called `default`."""
    others = directory / "additional_chat_templates" / f"{name}.jinja"
    path = directory / "chat_template.jinja" if name == "default" else others
    if path.is_file():
        return path.read_text(encoding="utf-8")
    value = config.get("chat_template")
    named = {item["name"]: item["template"] for item in value} if isinstance(value, list) else {"default": value}
    source = named.get(name)
    return source if isinstance(source, str) else None


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    if decoder["type"] == "Sequence":
        return {kind for part in decoder["decoders"] for kind in _decoder_types(part)}
    return {decoder["type"]}
