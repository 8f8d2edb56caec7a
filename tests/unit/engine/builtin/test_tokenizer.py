"""The tokenizer of the built-in model: any text survives it, and its chat format is the one that is trained."""

from functools import cache
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from core.prompts import PromptCodec
from engine.builtin.corpus import Document, DocumentKind
from engine.builtin.tokenizer import (
    ASSISTANT_ID,
    BOS_ID,
    EOS_ID,
    SPECIAL_TOKENS,
    SYSTEM_ID,
    USER_ID,
    question,
    save_tokenizer,
    train_tokenizer,
)

TEXTS = ["Return the name of the file.", "Return a list of names.", "The file is closed."] * 5


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=300)


def saved(directory: Path) -> PromptCodec:
    save_tokenizer(tokenizer(), directory, context_tokens=64)
    return PromptCodec.load(directory)


@given(st.text())
def test_every_text_comes_back_as_it_was(text: str) -> None:
    token_ids = tokenizer().encode(text, add_special_tokens=False).ids
    assert tokenizer().decode(token_ids, skip_special_tokens=False) == text


def test_the_same_texts_make_the_same_tokenizer() -> None:
    assert train_tokenizer(TEXTS, vocab_size=300).to_str() == tokenizer().to_str()


def test_special_tokens_come_first() -> None:
    assert [tokenizer().token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))


def test_a_text_begins_with_the_begin_token(tmp_path: Path) -> None:
    codec = saved(tmp_path)
    assert codec.encode_text("a")[0] == BOS_ID
    assert codec.decode(codec.encode_text("a list")) == "a list"


def test_a_chat_is_each_message_behind_its_role_and_answers_end(tmp_path: Path) -> None:
    # Given a conversation of all roles
    codec = saved(tmp_path)
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    # When it is encoded, then it reads as the training text does
    letter = {name: tokenizer().token_to_id(name) for name in "suav"}
    assert codec.encode_chat(messages) == [
        *(BOS_ID, SYSTEM_ID, letter["s"], USER_ID, letter["u"], ASSISTANT_ID, letter["a"], EOS_ID),
        *(USER_ID, letter["v"], ASSISTANT_ID),
    ]


def test_a_message_without_content_is_empty(tmp_path: Path) -> None:
    assert saved(tmp_path).render_chat([{"role": "assistant", "content": None}]) == "<s><|assistant|></s><|assistant|>"


def test_a_question_names_its_subject_and_stays_the_same() -> None:
    for kind in DocumentKind:
        document = Document("json.loads", "text", kind)
        assert "json.loads" in question(document)
        assert question(document) == question(document)
