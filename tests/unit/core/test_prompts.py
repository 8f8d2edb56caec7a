"""`core.prompts` against transformers itself: the same ids for texts and chats, the same text back, also in pieces."""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from core.errors import ConfigurationError, ContextLengthExceeded, InvalidRequest
from core.prompts import PromptCodec

SAMPLE = [
    "The quick brown fox jumps over the lazy dog.",
    "def main(argv):\n    return len(argv) or 'ä€😀'",
    "你好, 世界! Привет, мир! 🇩🇪👩‍👩‍👧",
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_LIKE = (
    "{%- set ns = namespace(first=true) -%}\n{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'tool' %}{% continue %}{% endif %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' }}\n"
    "    {%- if message.tool_calls is defined %}{{ message.tool_calls | tojson }}{% endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}"
)
NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% generation %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA_LIKE, "no-system": NO_SYSTEM}

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is a list?"}],
    [
        {"role": "user", "content": "  Grüße 😀 <s> "},
        {"role": "assistant", "content": "Hello.", "tool_calls": None},
        {"role": "user", "content": "ünd?"},
    ],
    [{"role": "assistant", "content": "42", "reasoning": "hm"}, {"role": "user", "content": "Why?"}],
    [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "fähig", "arguments": "<a>"}}]}],
]


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    tokenizer.add_tokens([" added token "])
    return tokenizer


def sentencepiece_like_tokenizer() -> Tokenizer:
    """The decoder of Llama 2 and Mistral: byte fallback, and a first space that goes away."""
    pieces = ["▁", "a", "b", "c", "▁a", "▁ab", "ab", "🙂"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces])}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def save(directory: Path, tokenizer: Tokenizer, template: str | None = None, **config: Any) -> Path:
    wrapped: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(directory)
    if config:
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return directory


def transformers_tokenizer(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


@cache
def byte_level() -> PromptCodec:
    return PromptCodec(byte_level_tokenizer(), None)


@cache
def sentencepiece_like() -> PromptCodec:
    return PromptCodec(sentencepiece_like_tokenizer(), None)


def streamed(codec: PromptCodec, token_ids: list[int], cuts: list[int]) -> list[str]:
    """The pieces of a stream that is pushed in portions ending at `cuts`."""
    stream = codec.stream()
    borders = sorted({0, len(token_ids), *(cut % (len(token_ids) + 1) for cut in cuts)})
    pieces = [stream.push(token_ids[start:end]) for start, end in pairwise(borders)]
    return [*pieces, stream.finish()]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("chat", CHATS, ids=range(len(CHATS)))
def test_a_chat_has_the_ids_that_transformers_gives_it(
    tmp_path: Path, template: str, chat: list[dict[str, Any]]
) -> None:
    # Given one model directory
    directory = save(tmp_path, byte_level_tokenizer(), template)
    codec, reference = PromptCodec.load(directory), transformers_tokenizer(directory)
    # When both encode the chat
    expected = reference.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    # Then nothing differs
    assert codec.has_chat_template
    assert codec.encode_chat(chat) == expected
    assert codec.render_chat(chat) == reference.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}])
@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_like_tokenizer])
def test_a_text_has_the_ids_that_transformers_gives_it(tmp_path: Path, make: Any, config: dict[str, Any]) -> None:
    directory = save(tmp_path, make(), **config)
    codec, reference = PromptCodec.load(directory), transformers_tokenizer(directory)
    for text in ["", " ", "ab a cab", "<s>ab</s>", *SAMPLE]:
        assert codec.encode_text(text) == reference(text)["input_ids"]
        ids = codec.encode_text(text)
        assert codec.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert codec.vocab_size == len(reference)


def test_truncation_and_padding_saved_with_a_tokenizer_are_ignored(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = PromptCodec.load(tmp_path)
    assert codec.decode(codec.encode_text(SAMPLE[0])) == SAMPLE[0]


@given(st.text(max_size=60), st.lists(st.integers(0, 200), max_size=8))
def test_pieces_of_a_byte_level_text_make_the_whole(text: str, cuts: list[int]) -> None:
    token_ids = byte_level().encode_text(text)
    assert "".join(streamed(byte_level(), token_ids, cuts)) == byte_level().decode(token_ids) == text.replace("<s>", "")


@given(st.lists(st.integers(0, 340), max_size=60), st.lists(st.integers(0, 200), max_size=8))
def test_pieces_of_any_byte_level_tokens_make_the_whole(token_ids: list[int], cuts: list[int]) -> None:
    """Broken UTF-8, special tokens, added tokens and ids that do not exist included."""
    assert "".join(streamed(byte_level(), token_ids, cuts)) == byte_level().decode(token_ids)


@given(st.lists(st.integers(0, 275), max_size=60), st.lists(st.integers(0, 200), max_size=8))
def test_pieces_of_any_byte_fallback_tokens_make_the_whole(token_ids: list[int], cuts: list[int]) -> None:
    assert "".join(streamed(sentencepiece_like(), token_ids, cuts)) == sentencepiece_like().decode(token_ids)


@given(st.text("ab €😀🇩🇪", max_size=30), st.lists(st.integers(0, 200), max_size=8))
def test_pieces_of_a_byte_fallback_text_make_the_whole(text: str, cuts: list[int]) -> None:
    token_ids = sentencepiece_like().encode_text(text)
    assert "".join(streamed(sentencepiece_like(), token_ids, cuts)) == sentencepiece_like().decode(token_ids)


@pytest.mark.parametrize("codec", [byte_level, sentencepiece_like])
def test_no_piece_shows_half_a_character(codec: Any) -> None:
    # Given a text whose characters are several tokens each, one token at a time
    text = "a 😀€ b 🇩🇪"
    token_ids = codec().encode_text(text)
    pieces = streamed(codec(), token_ids, list(range(len(token_ids) + 1)))
    # Then the pieces are whole characters, and there are more than one
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 1


def test_half_a_character_at_the_end_comes_out_at_the_finish() -> None:
    stream, token_ids = byte_level().stream(), byte_level().encode_text("☃")
    assert stream.push(token_ids[:1]) == ""
    assert stream.finish() == byte_level().decode(token_ids[:1]) == "\ufffd"


def test_a_template_that_refuses_a_role_is_an_invalid_request_with_its_reason(tmp_path: Path) -> None:
    codec = PromptCodec.load(save(tmp_path, byte_level_tokenizer(), NO_SYSTEM))
    with pytest.raises(InvalidRequest, match="refuses these messages: System role not supported") as caught:
        codec.encode_chat([{"role": "system", "content": "x"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ messages[7].content.upper() }}",
        "{{ 'a' + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% set ns = namespace(__init__=1) %}",
        "{{ range(1000000) | list }}",
    ],
)
def test_a_broken_or_hostile_template_is_an_invalid_request(tmp_path: Path, template: str) -> None:
    codec = PromptCodec.load(save(tmp_path, byte_level_tokenizer(), template))
    with pytest.raises(InvalidRequest, match="chat template"):
        codec.encode_chat(CHATS[0])
    assert codec.encode_text("still works")


def test_a_model_without_a_template_refuses_chats_alone(tmp_path: Path) -> None:
    codec = PromptCodec.load(save(tmp_path, byte_level_tokenizer()))
    assert not codec.has_chat_template
    with pytest.raises(InvalidRequest, match="no chat template"):
        codec.encode_chat(CHATS[0])


@pytest.mark.parametrize("form", ["file", "string", "list"])
def test_a_template_is_found_in_every_place_where_models_keep_it(tmp_path: Path, form: str) -> None:
    # Given a directory with the template in one of the three places
    named = [{"name": "tool_use", "template": "wrong"}, {"name": "default", "template": CHATML}]
    values: dict[str, Any] = {"string": CHATML, "list": named}
    config = {"chat_template": values[form]} if form in values else {}
    directory = save(tmp_path, byte_level_tokenizer(), CHATML if form == "file" else None, **config)
    # When it is loaded, then it is this one
    reference = transformers_tokenizer(directory)
    expected = reference.apply_chat_template(CHATS[0], add_generation_prompt=True, tokenize=False)
    assert PromptCodec.load(directory).render_chat(CHATS[0]) == expected


def test_text_parts_are_joined(tmp_path: Path) -> None:
    codec = PromptCodec.load(save(tmp_path, byte_level_tokenizer(), CHATML))
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " a list?"}]
    assert codec.encode_chat([{"role": "user", "content": parts}]) == codec.encode_chat(CHATS[0])


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "at least one message"),
        ("hello", "at least one message"),
        (["hello"], r"messages\[0\]: expected an object with a role"),
        ([{"content": "x"}], r"messages\[0\]: expected an object with a role"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content: expected a string .* got int"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "got type 'image_url'; only text"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], r"content\[0\].*got type 'input_audio'"),
        ([{"role": "user", "content": ["x"]}], "got type 'str'"),
        ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
    ],
)
def test_messages_that_no_template_can_take_are_refused_with_a_sentence(
    tmp_path: Path, messages: Any, sentence: str
) -> None:
    codec = PromptCodec.load(save(tmp_path, byte_level_tokenizer(), CHATML))
    with pytest.raises(InvalidRequest, match=sentence):
        codec.encode_chat(messages)


def test_a_directory_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected a fast tokenizer at .*tokenizer\.json"):
        PromptCodec.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path, byte_level_tokenizer())
    (tmp_path / name).write_text("{ not json")
    with pytest.raises(ConfigurationError, match=name):
        PromptCodec.load(tmp_path)


class TestLongTexts:
    def test_what_cannot_fit_is_refused_before_it_is_tokenized(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a model whose longest token has 4 letters
        codec = PromptCodec(Tokenizer(models.WordLevel({"aaaa": 0, "b": 1}, unk_token="b")), None)

        # Then
        with pytest.raises(ContextLengthExceeded, match="40000 bytes, more than 9999 tokens"):
            codec.encode_text("a" * 40_000, max_tokens=9_999)
        assert len(codec.encode_text("a" * 40_000, max_tokens=10_000)) == 1

    def test_a_long_text_has_the_tokens_that_its_parts_have(self) -> None:
        # Given
        tokenizer = Tokenizer(models.WordLevel({"b": 0, "a": 1}, unk_token="b"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        codec = PromptCodec(tokenizer, None)

        # Then
        assert codec.encode_text("a b " * 10_000) == [1, 0] * 10_000
