"""One choice of an answer as far as the relay has told it: its text, what that says, and its log-probabilities."""

from dataclasses import dataclass, field
from typing import Any

from core.openai.answer import TextOffsets
from core.openai.message import Message
from core.openai.tool_calls import read_message
from core.protocol import TokenLogprob
from tasks.relay import Piece

READS_PER_DOUBLING = 32


@dataclass(slots=True)
class Growing:
    """A choice as the relay tells it. is_behind: a piece is missing, so the rest has to wait for the whole answer.
    written: log-probabilities of the first `num_written` tokens, as OpenAI writes them."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_tokens: int = 0
    prompt_tokens: int = 0
    tool_format: str = ""
    is_behind: bool = False
    written: dict[str, Any] = field(default_factory=dict)
    num_written: int = 0
    offsets: TextOffsets = field(default_factory=TextOffsets)
    _read: Message = field(default_factory=Message)
    _read_again_at: int = 0

    def add(self, piece: Piece) -> None:
        """What was told before is left out."""
        self.is_behind = self.is_behind or piece.offset > len(self.text)
        if self.is_behind or piece.offset < len(self.text):
            return
        self.text += piece.text
        self.logprobs += piece.logprobs or ()
        self.num_tokens = piece.num_tokens
        self.prompt_tokens = piece.prompt_tokens
        self.tool_format = piece.tool_format

    @property
    def message(self) -> Message:
        """Calls are read from the beginning, letter by letter: the longer the text, the less often."""
        num_letters = len(self.text)
        may_have_calls = bool(self.tool_format) and "{" in self.text
        if not may_have_calls or num_letters >= self._read_again_at:
            self._read = read_message(self.tool_format, self.text, is_end=False)
            self._read_again_at = num_letters + num_letters // READS_PER_DOUBLING
        return self._read
