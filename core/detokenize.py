"""Answer tokens to text while they come. Two ways, chosen by the tokenizer's decoder.

`ByteLevelStream` is exact for byte-level BPE (GPT-2, Llama 3, Qwen): every token is some bytes, and an incremental
UTF-8 decoder holds back the beginning of a character. `WindowStream` serves every other decoder (SentencePiece and the
like): it decodes the new tokens behind one old one, because such decoders look at a token's neighbour, and takes the
difference.
"""

import codecs
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class ByteLevelStream:
    """`token_bytes`: what is already known of token id -> bytes, shared by all streams of a model."""

    def __init__(self, tokenizer: Tokenizer, hidden_ids: frozenset[int], token_bytes: dict[int, bytes]) -> None:
        self._tokenizer = tokenizer
        self._hidden_ids = hidden_ids
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        return self._decoder.decode(b"".join(map(self._bytes, token_ids)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)

    def _bytes(self, token_id: int) -> bytes:
        known = self._token_bytes.get(token_id)
        if known is None:
            known = self._token_bytes[token_id] = self._compute_bytes(token_id)
        return known

    def _compute_bytes(self, token_id: int) -> bytes:
        token = None if token_id in self._hidden_ids else self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(_BYTE_OF_CHARACTER[character] for character in token)
        except KeyError:  # an added token is written as it is
            return token.encode()


class WindowStream:
    """Holds back a run of byte tokens (`<0xE2>`) until it ends: whether it is text is known only then."""

    def __init__(self, tokenizer: Tokenizer, hidden_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden_ids = hidden_ids
        self._context: list[int] = []  # at most one token, whose text is out already
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        visible = [token_id for token_id in token_ids if self._is_visible(token_id)]
        certain = len(visible)
        while certain > 0 and self._is_byte(visible[certain - 1]):
            certain -= 1
        if certain == 0:
            self._pending += visible
            return ""
        text = self._emit(self._pending + visible[:certain])
        self._pending = visible[certain:]
        return text

    def finish(self) -> str:
        text, self._pending = self._emit(self._pending), []
        return text

    def _emit(self, token_ids: list[int]) -> str:
        before = self._decode(self._context)
        after = self._decode(self._context + token_ids)
        self._context = (self._context + token_ids)[-1:]
        return after[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _is_visible(self, token_id: int) -> bool:
        return token_id not in self._hidden_ids and self._tokenizer.id_to_token(token_id) is not None

    def _is_byte(self, token_id: int) -> bool:
        return _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token_id) or "") is not None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of every byte: printable Latin-1 is itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + offset): byte for offset, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
