"""Documents as one long stream of tokens, and the stream as windows to train on."""

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.builtin.corpus import Document
from engine.builtin.recipe import Recipe
from engine.builtin.tokenizer import ASSISTANT_ID, BOS_ID, EOS_ID, SYSTEM_ID, SYSTEM_PROMPT, USER_ID, question

_SYSTEM_FRACTION = 0.1  # of the chats begin with a system message


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[Tensor]:
    """One tensor (tokens,) int64 for each text, without special tokens."""
    return [torch.tensor(found.ids) for found in tokenizer.encode_batch(texts, add_special_tokens=False)]


def plain_stream(documents: list[Tensor]) -> Tensor:
    """`<s>text</s>` one behind the other: (tokens,) int64."""
    begin, end = torch.tensor([BOS_ID]), torch.tensor([EOS_ID])
    return torch.cat([part for document in documents for part in (begin, document, end)])


class TrainingText:
    """Every stream holds every document once, in a new order, with a new choice of them as question and answer."""

    def __init__(self, tokenizer: Tokenizer, documents: list[Document], chat_fraction: float) -> None:
        self._texts = encode_documents(tokenizer, [document.text for document in documents])
        self._questions = encode_documents(tokenizer, [question(document) for document in documents])
        self._system = encode_documents(tokenizer, [SYSTEM_PROMPT])[0]
        self._chat_fraction = chat_fraction

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each token occurs in the plain stream: (vocab,) int64."""
        return torch.bincount(plain_stream(self._texts), minlength=vocab_size)

    def stream(self, generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(self._texts), generator=generator).tolist()
        draws = torch.rand(len(self._texts), generator=generator).tolist()
        return torch.cat([part for index, draw in zip(order, draws, strict=True) for part in self._parts(index, draw)])

    def _parts(self, index: int, draw: float) -> list[Tensor]:
        begin, text, end = torch.tensor([BOS_ID]), self._texts[index], torch.tensor([EOS_ID])
        if draw >= self._chat_fraction:
            return [begin, text, end]
        chat = [torch.tensor([USER_ID]), self._questions[index], torch.tensor([ASSISTANT_ID]), text, end]
        if draw >= self._chat_fraction * _SYSTEM_FRACTION:
            return [begin, *chat]
        return [begin, torch.tensor([SYSTEM_ID]), self._system, *chat]


class Batches:
    """Batches of equally long windows, in random order, each token once before any comes again."""

    def __init__(self, text: TrainingText, recipe: Recipe) -> None:
        self._text = text
        self._step_tokens = recipe.step_tokens
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._windows = torch.empty(0, 0, dtype=torch.int64)
        self._next_row = 0

    def take(self, window_tokens: int) -> Tensor:
        """(rows, window_tokens + 1) int64: the last column is only ever a target."""
        num_rows = max(1, self._step_tokens // window_tokens)
        if self._windows.shape[1] != window_tokens + 1 or self._next_row + num_rows > len(self._windows):
            self._windows, self._next_row = self._shuffled_windows(window_tokens), 0
        self._next_row += num_rows
        return self._windows[self._next_row - num_rows : self._next_row]

    def _shuffled_windows(self, window_tokens: int) -> Tensor:
        windows = self._text.stream(self._generator).unfold(0, window_tokens + 1, window_tokens)
        return windows[torch.randperm(len(windows), generator=self._generator)]
