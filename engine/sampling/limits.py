"""Whether a request can be served at all, and how long its answer may become. Knows no torch."""

import math

from core.errors import ContextLengthExceeded, InvalidRequest
from core.protocol import Sampling

MAX_STOP_STRINGS = 16


def check_sampling(sampling: Sampling) -> None:
    """Raises InvalidRequest, naming the parameter."""
    _expect(sampling.max_tokens is None or sampling.max_tokens >= 1, "max_tokens", "at least 1", sampling.max_tokens)
    is_temperature = math.isfinite(sampling.temperature) and sampling.temperature >= 0
    _expect(is_temperature, "temperature", "a finite number of at least 0", sampling.temperature)
    _expect(0 < sampling.top_p <= 1, "top_p", "more than 0 and at most 1", sampling.top_p)
    _expect(sampling.top_k >= 0, "top_k", "0 (off) or more", sampling.top_k)
    _expect(len(sampling.stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} strings", len(sampling.stop))
    _expect(all(sampling.stop), "stop", "strings that are not empty", sampling.stop)


def check_token_ids(token_ids: list[int], vocabulary_size: int) -> None:
    """Raises InvalidRequest where the model has no such token, which would otherwise take the whole step down."""
    if not token_ids:
        raise InvalidRequest(
            "expected a prompt of at least one token, got none; the tokenizer made nothing of the text"
        )
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < vocabulary_size:
            raise InvalidRequest(f"token_ids: expected 0 to {vocabulary_size - 1}, got {token_id}", param="token_ids")


def answer_limit(num_prompt_tokens: int, max_tokens: int | None, context_tokens: int) -> int:
    """How many tokens the answer may have. Raises ContextLengthExceeded where not even one fits."""
    room = context_tokens - num_prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt_tokens} tokens, but prompt and answer together may have {context_tokens}; "
            "shorten it, or use a model with a longer context"
        )
    return room if max_tokens is None else min(room, max_tokens)


def _expect(is_met: bool, name: str, expected: str, got: object) -> None:
    if not is_met:
        raise InvalidRequest(f"{name}: expected {expected}, got {got!r}", param=name)
