"""How well a model predicts a text: perplexity per token, and bits per byte, which compares models of any tokenizer.

Works for every Hugging Face model directory. The text is one or more documents (`join_documents`); they are put behind
each other, each between the special tokens of the model, and cut into windows without overlap, so that the first
tokens of a window have little context: figures compare only between equal window lengths.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from core.prompts import PromptCodec

DEFAULT_WINDOW_TOKENS = 256

_SEPARATOR = "\n\f\n"
_TOKENS_AT_ONCE = 4096  # bounds the logits held in memory


@dataclass(frozen=True, slots=True)
class Quality:
    perplexity: float
    bits_per_byte: float
    num_tokens: int
    num_bytes: int
    window_tokens: int


def join_documents(documents: Iterable[str]) -> str:
    return _SEPARATOR.join(document.replace("\f", " ") for document in documents)


def split_documents(text: str) -> list[str]:
    return [document for document in text.split(_SEPARATOR) if document]


def evaluate(directory: Path, text: str, window_tokens: int = DEFAULT_WINDOW_TOKENS) -> Quality:
    model = AutoModelForCausalLM.from_pretrained(directory)
    stream = model_stream(PromptCodec.load(directory), text, _end_ids(model)[:1])
    return measure(model, stream, text, window_tokens)


def model_stream(codec: PromptCodec, text: str, end_ids: list[int]) -> Tensor:
    """All documents of `text` as the model would see them, one behind the other: (tokens,) int64."""
    return torch.tensor([i for document in split_documents(text) for i in codec.encode_text(document) + end_ids])


def measure(model: Any, stream: Tensor, text: str, window_tokens: int) -> Quality:
    """`stream`: the tokens of `text`. All but the first are predicted."""
    num_tokens, num_bytes = len(stream) - 1, sum(len(document.encode()) for document in split_documents(text))
    if num_tokens < 1:
        raise ValueError(f"expected at least two tokens of text to measure, got {len(stream)}")
    nats = _total_nats(model, stream, window_tokens)
    return Quality(
        perplexity=math.exp(nats / num_tokens),
        bits_per_byte=nats / math.log(2) / num_bytes,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        window_tokens=window_tokens,
    )


def unigram_perplexity(token_counts: Tensor, stream: Tensor) -> float:
    """Of the model that knows only how often each token occurs, add-one smoothed, on what `measure` predicts."""
    counts = token_counts.double() + 1
    return math.exp(-(counts / counts.sum()).log()[stream[1:]].mean().item())


@torch.inference_mode()
def _total_nats(model: Any, stream: Tensor, window_tokens: int) -> float:
    model.eval()
    num_whole = (len(stream) - 1) // window_tokens
    whole = stream[: num_whole * window_tokens + 1]
    rest = stream[num_whole * window_tokens :]
    batches = [rest[None]] if len(rest) > 1 else []
    if num_whole:
        windows = whole.unfold(0, window_tokens + 1, window_tokens)
        batches += torch.split(windows, max(1, _TOKENS_AT_ONCE // window_tokens))
    return sum(_nats(model, batch) for batch in batches)


def _nats(model: Any, windows: Tensor) -> float:
    """windows: (rows, tokens + 1) int64."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="sum").item()


def _end_ids(model: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    if found is None:
        return []
    return [found] if isinstance(found, int) else list(found)
