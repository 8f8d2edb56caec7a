"""Whether a request can be served at all, and how long its answer may become. Knows no torch."""

import math

from core.errors import InvalidRequest
from core.openai.completion import MAX_ANSWERS, MAX_TOP_LOGPROBS
from core.prompts import answer_room
from core.protocol import Sampling

MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 64
MAX_BIASED_TOKENS = 1024


def check_sampling(sampling: Sampling) -> None:
    """Raises InvalidRequest, naming the parameter."""
    s = sampling
    _expect(s.max_tokens is None or s.max_tokens >= 1, "max_tokens", "at least 1", s.max_tokens)
    is_temperature = math.isfinite(s.temperature) and s.temperature >= 0
    _expect(is_temperature, "temperature", "a finite number of at least 0", s.temperature)
    _expect(0 < s.top_p <= 1, "top_p", "more than 0 and at most 1", s.top_p)
    _expect(s.top_k >= 0, "top_k", "0 (off) or more", s.top_k)
    _expect(0 <= s.min_p <= 1, "min_p", "0 (off) to 1", s.min_p)
    is_penalty = math.isfinite(s.repetition_penalty) and s.repetition_penalty > 0
    _expect(is_penalty, "repetition_penalty", "a finite number of more than 0", s.repetition_penalty)
    _expect(-2 <= s.presence_penalty <= 2, "presence_penalty", "-2 to 2", s.presence_penalty)
    _expect(-2 <= s.frequency_penalty <= 2, "frequency_penalty", "-2 to 2", s.frequency_penalty)
    is_number = s.num_logprobs is None or 0 <= s.num_logprobs <= MAX_TOP_LOGPROBS
    _expect(is_number, "top_logprobs", f"0 to {MAX_TOP_LOGPROBS}", s.num_logprobs)
    _check_biases(s)
    _check_ends(s)


def check_num_answers(num_answers: int) -> None:
    _expect(1 <= num_answers <= MAX_ANSWERS, "n", f"1 to {MAX_ANSWERS}", num_answers)


def check_token_ids(token_ids: list[int], vocabulary_size: int) -> None:
    """Raises InvalidRequest where the model has no such token, which would otherwise take the whole step down."""
    if not token_ids:
        raise InvalidRequest(
            "expected a prompt of at least one token, got none; the tokenizer made nothing of the text"
        )
    for token_id in (min(token_ids), max(token_ids)):
        _expect_token("token_ids", token_id, vocabulary_size)


def check_named_tokens(sampling: Sampling, vocabulary_size: int) -> None:
    """As `check_token_ids`, for the tokens that parameters name."""
    for token_id in sampling.logit_bias:
        _expect_token("logit_bias", token_id, vocabulary_size)
    for token_id in sampling.stop_token_ids:
        _expect_token("stop_token_ids", token_id, vocabulary_size)


def answer_limit(num_prompt_tokens: int, max_tokens: int | None, context_tokens: int) -> int:
    """How many tokens the answer may have. Raises ContextLengthExceeded where not even one fits."""
    room = answer_room(num_prompt_tokens, context_tokens)
    return room if max_tokens is None else min(room, max_tokens)


def _check_biases(sampling: Sampling) -> None:
    biases = sampling.logit_bias
    _expect(len(biases) <= MAX_BIASED_TOKENS, "logit_bias", f"at most {MAX_BIASED_TOKENS} tokens", len(biases))
    for token_id, bias in biases.items():
        _expect(-100 <= bias <= 100, "logit_bias", f"-100 to 100 for token {token_id}", bias)


def _check_ends(sampling: Sampling) -> None:
    s = sampling
    _expect(len(s.stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} strings", len(s.stop))
    _expect(all(s.stop), "stop", "strings that are not empty", s.stop)
    is_few = len(s.stop_token_ids) <= MAX_STOP_TOKENS
    _expect(is_few, "stop_token_ids", f"at most {MAX_STOP_TOKENS} tokens", len(s.stop_token_ids))
    _expect(s.min_tokens >= 0, "min_tokens", "0 or more", s.min_tokens)
    is_possible = s.max_tokens is None or s.min_tokens <= s.max_tokens
    _expect(is_possible, "min_tokens", f"at most max_tokens, which is {s.max_tokens}", s.min_tokens)


def _expect_token(name: str, token_id: int, vocabulary_size: int) -> None:
    _expect(0 <= token_id < vocabulary_size, name, f"0 to {vocabulary_size - 1}", token_id)


def _expect(is_met: bool, name: str, expected: str, got: object) -> None:
    if not is_met:
        raise InvalidRequest(f"{name}: expected {expected}, got {got!r}", param=name)
