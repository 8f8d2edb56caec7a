"""Answer tokens to text while they come. Two ways, chosen by the tokenizer's decoder.

`ByteLevelStream` is exact for byte-level BPE (GPT-2, Llama 3, Qwen): every token is some bytes, and an incremental
UTF-8 decoder holds back the beginning of a character. `WindowStream` serves every other decoder (SentencePiece and the
like): it decodes the new tokens behind one old one, because such decoders look at a token's neighbour, and takes the
difference. `TokenBytes` knows the bytes of every single token.
"""

import codecs
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TokenBytes:
    """What each token adds to a text behind another one, as bytes; shared by all streams of a model.

    Exact for byte-level BPE and for byte tokens, so for parts of characters too. A special token has the bytes of its
    name, though texts leave it out; an id that is no token has none.
    """

    def __init__(self, tokenizer: Tokenizer, special_ids: frozenset[int], *, is_byte_level: bool) -> None:
        self.special_ids = special_ids
        self._tokenizer = tokenizer
        self._is_byte_level = is_byte_level
        self._known: dict[int, bytes] = {}

    def __call__(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._compute(token_id)
        return known

    def _compute(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self.special_ids:
            return token.encode()
        if self._is_byte_level:
            return _alphabet_bytes(token)
        if _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(token[3:5])
        return self._decoded(token_id).encode()

    def _decoded(self, token_id: int) -> str:
        """The second of two: decoders may take a space away from the first."""
        once, twice = (self._tokenizer.decode([token_id] * times) for times in (1, 2))
        return str(twice[len(once) :])


class ByteLevelStream:
    def __init__(self, token_bytes: TokenBytes, kept_ids: frozenset[int] = frozenset()) -> None:
        """kept_ids: special tokens that stay in the text, by their names."""
        self._token_bytes = token_bytes
        self._hidden_ids = token_bytes.special_ids - kept_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        visible = [self._token_bytes(one) for one in token_ids if one not in self._hidden_ids]
        return self._decoder.decode(b"".join(visible))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowStream:
    """Holds back a run of byte tokens (`<0xE2>`) until it ends: whether it is text is known only then."""

    def __init__(
        self, tokenizer: Tokenizer, hidden_ids: frozenset[int], kept_ids: frozenset[int] = frozenset()
    ) -> None:
        """kept_ids: of the hidden ones, those that stay in the text, by their names."""
        self._tokenizer = tokenizer
        self._hidden_ids = hidden_ids
        self._kept_ids = kept_ids
        self._context: list[int] = []  # at most one token, whose text is out already
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        text, start = "", 0
        for position, token_id in enumerate(token_ids):
            if token_id in self._kept_ids:
                text += self._push_text(token_ids[start:position]) + self.finish()
                text += self._tokenizer.id_to_token(token_id) or ""
                self._context, start = [], position + 1
        return text + self._push_text(token_ids[start:])

    def _push_text(self, token_ids: Sequence[int]) -> str:
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


def _alphabet_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:  # an added token is written as it is
        return token.encode()
