"""The bytes of single tokens: together they are the text, even where a token is half a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from core.prompts import PromptCodec
from tests.unit.core.test_prompts import byte_level_tokenizer, sentencepiece_like_tokenizer

CODECS = [PromptCodec(byte_level_tokenizer(), None), PromptCodec(sentencepiece_like_tokenizer(), None)]


@pytest.mark.parametrize("codec", CODECS, ids=["bytes", "pieces"])
@settings(deadline=None)
@given(st.text(st.sampled_from("abc ü€😀你"), max_size=20))
def test_tokens_of_a_text_have_its_bytes(codec: PromptCodec, text: str) -> None:
    written = b"".join(codec.token_bytes(token_id) for token_id in codec.encode_fragment(text))
    assert written in (text.encode(), b" " + text.encode())  # some tokenizers put a space in front of every text


@pytest.mark.parametrize("codec", CODECS, ids=["bytes", "pieces"])
def test_every_byte_is_some_token(codec: PromptCodec) -> None:
    assert {bytes([byte]) for byte in range(256)} <= {codec.token_bytes(one) for one in range(codec.vocab_size)}


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), sentencepiece_like_tokenizer()], ids=["bytes", "pieces"])
def test_special_tokens_have_the_bytes_of_their_names_and_other_numbers_none(tokenizer: Tokenizer) -> None:
    codec = PromptCodec(tokenizer, None)
    assert {codec.token_bytes(token_id) for token_id in codec.special_ids} == {
        b"<s>",
        b"</s>",
        b"<|im_start|>",
        b"<|im_end|>",
    }
    assert codec.token_bytes(codec.vocab_size) == b""
