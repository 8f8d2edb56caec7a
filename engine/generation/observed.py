"""The tokens of one answer with their log-probabilities, and where in its text they lie. Knows no torch."""

import bisect
import codecs

from core.prompts import PromptCodec
from core.protocol import TokenLogprob, TopToken
from engine.sampling.logprobs import Logprobs


class ObservedTokens:
    """Log-probabilities of an answer's tokens, and which of them have been streamed.

    `_begins` holds the character of the text to which each token's first byte belongs. A run of tokens that are parts
    of characters may stay out of the text until it ends; its bytes tell where its tokens begin.
    """

    def __init__(self, codec: PromptCodec) -> None:
        self.entries: list[TokenLogprob] = []
        self._codec = codec
        self._begins: list[int] = []
        self._num_told = 0
        self._run = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._run_end: int | None = None  # where the next token of the run begins

    @property
    def has_untold(self) -> bool:
        return len(self.entries) > self._num_told

    def add(self, token_id: int, logprobs: Logprobs, num_before: int, num_after: int) -> None:
        """num_before, num_after: characters of the text without the token, and with it."""
        text, written = self._written(token_id)
        top = [TopToken(*self._written(rival), logprob) for rival, logprob in logprobs.top]
        self.entries.append(TokenLogprob(text, written, logprobs.chosen, top))
        if text.encode() == written and num_after > num_before:
            self._begins.append(max(num_before, num_after - len(text)))
            self._run_end = None
            return
        if self._run_end is None:
            self._run.reset()
            self._run_end = num_before
        self._begins.append(self._run_end)
        if token_id not in self._codec.special_ids:
            self._run_end += len(self._run.decode(written)) - self._num_stripped(token_id, text)

    def cut(self, num_characters: int) -> None:
        """What a stop string has cut off is no part of the answer."""
        del self.entries[self._num_begun(num_characters) :]

    def tell(self, num_characters: int | None) -> list[TokenLogprob]:
        """Those that begin in the first characters, None is all, and have not been told yet."""
        untold = self.entries[self._num_told : None if num_characters is None else self._num_begun(num_characters)]
        self._num_told += len(untold)
        return untold

    def _num_stripped(self, token_id: int, text: str) -> int:
        """Some tokenizers take the first space of a text away."""
        is_first = len(self.entries) == 1
        return max(0, len(text) - len(self._codec.decode([token_id]))) if is_first else 0

    def _num_begun(self, num_characters: int) -> int:
        return bisect.bisect_left(self._begins, num_characters)

    def _written(self, token_id: int) -> tuple[str, bytes]:
        written = self._codec.token_bytes(token_id)
        return written.decode(errors="replace"), written
