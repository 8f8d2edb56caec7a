"""Answers that fit a JSON schema: which tokens may come next, by llguidance. Knows no torch.

The library is imported, and the vocabulary handed to it, at the first schema: that takes 0.4 s for 150,000 tokens, and
few processes ever see one. Schemas are compiled on threads of their own, once for all that ask for the same; what comes
of it is kept for the latest `NUM_KEPT` schemas. The library gives up on schemas that are too large for it. One that
still takes longer than `COMPILE_SECONDS` is given up by those who wait for it.

White space is bounded: between two tokens of JSON one space, or a line break and an indentation of at most 16. Without
a bound a model may well write spaces until its tokens run out.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.errors import InvalidRequest, MillraceError, ModelFailure, Unsupported

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

NUM_KEPT = 256
NUM_THREADS = 2  # so that one slow schema does not hold up all others
COMPILE_SECONDS = 20.0
_WHITE_SPACE = r"\n {0,16}| "
_NUM_ERROR_CHARACTERS = 300


@dataclass(slots=True, eq=False)
class Compilation:
    """Of one schema. started_seconds: by the clock; infinite while it waits for a thread."""

    clock: Callable[[], float]
    matcher: Future[LLMatcher]
    started_seconds: float = math.inf

    @property
    def is_over(self) -> bool:
        return self.matcher.done() or self.is_late

    @property
    def is_late(self) -> bool:
        return self.clock() - self.started_seconds > COMPILE_SECONDS

    def result(self) -> LLMatcher:
        """Waits. Raises a MillraceError, whatever the library raised."""
        if not self.matcher.done() and self.is_late:
            raise _refusal(f"it takes longer than {COMPILE_SECONDS:.0f} s")
        error = self.matcher.exception()
        if error is None or isinstance(error, MillraceError):
            return self.matcher.result()
        raise ModelFailure(f"response_format: the JSON schema broke its compiler: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """token_bytes: of an id, empty where it is no token. size: of the model's logits, which may have more places.

    encode: a text's tokens, without special ones. end_ids: what may come where the grammar is satisfied.
    """

    size: int
    token_bytes: Callable[[int], bytes]
    encode: Callable[[str], list[int]]
    special_ids: frozenset[int]
    end_ids: frozenset[int]


class Grammars:
    """The grammars of one model."""

    def __init__(self, vocabulary: Vocabulary, clock: Callable[[], float] = time.monotonic) -> None:
        self._vocabulary = vocabulary
        self._clock = clock
        self._compiled: OrderedDict[str, Compilation] = OrderedDict()

    def constraint(self, schema: str) -> SchemaConstraint:
        """For one answer. Raises InvalidRequest where the schema is known to be none; else the answer finds out."""
        compilation = self._compiled.get(schema)
        if compilation is None:
            compilation = self._compiled[schema] = Compilation(self._clock, Future())
            self._compiler.submit(self._run, compilation, schema)
            if len(self._compiled) > NUM_KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(schema)
        if compilation.is_over:
            compilation.result()
        return SchemaConstraint(compilation)

    @cached_property
    def _compiler(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammars")

    def _run(self, compilation: Compilation, schema: str) -> None:
        """On a thread."""
        compilation.started_seconds = self._clock()
        try:
            compilation.matcher.set_result(self._compile(schema))
        except BaseException as error:  # noqa: BLE001  # a panic in Rust too; told to those who wait for it
            compilation.matcher.set_exception(error)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return _build_tokenizer(self._vocabulary)

    def _compile(self, schema: str) -> LLMatcher:
        tokenizer = self._tokenizer
        from llguidance import LLMatcher, LLParserLimits

        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITE_SPACE})
        except ValueError as error:
            raise _refusal(str(error)) from error
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return matcher


class SchemaConstraint:
    """See `engine.sampling.controls.Constraint`."""

    def __init__(self, compilation: Compilation) -> None:
        self._compilation = compilation
        self._own: LLMatcher | None = None

    @property
    def is_ready(self) -> bool:
        return self._own is not None or self._compilation.is_over

    def check(self) -> None:
        self._compilation.result()

    @property
    def is_complete(self) -> bool:
        """False after an error, such as a bound of the library: the next token fails the row then."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def fill(self, mask: NDArray[np.uint8]) -> None:
        matcher = self._matcher
        is_over = matcher.is_stopped()
        if not is_over:
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            mask[: len(bits)] = bits[: len(mask)]
            mask[len(bits) :] = 0
        if is_over or matcher.is_error() or not mask.any():
            reason = _first_line(matcher.get_error()) or matcher.stop_reason()
            raise ModelFailure(f"response_format: this model's tokens cannot meet the JSON schema from here: {reason}")

    def take(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)

    @property
    def _matcher(self) -> LLMatcher:
        """Waits for the compiler where nobody waited until it was ready."""
        if self._own is None:
            self._own = self._compilation.result().deep_copy()
        return self._own


def _refusal(reason: str) -> MillraceError:
    return InvalidRequest(
        f"response_format: expected a JSON schema that can be compiled, got one that cannot: {_first_line(reason)}",
        param="response_format",
    )


def _first_line(message: str) -> str:
    """The others show the library's inner state."""
    return message.partition("\n")[0][:_NUM_ERROR_CHARACTERS]


def _build_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise Unsupported(
            "response_format: expected the package llguidance beside the engine, found none; "
            "install millrace[engine], or ask for JSON in the prompt",
            param="response_format",
        ) from error
    ends: Iterable[int] = vocabulary.end_ids or vocabulary.special_ids or {0}
    wrapped = TokenizerWrapper(_Tokens(vocabulary, min(ends)))
    return LLTokenizer(wrapped, n_vocab=vocabulary.size, eos_token=sorted(ends))


class _Tokens:
    """A vocabulary under the names that llguidance reads."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, end_id: int) -> None:
        self.eos_token_id = end_id
        self.tokens = [vocabulary.token_bytes(token_id) for token_id in range(vocabulary.size)]
        self.special_token_ids = sorted(vocabulary.special_ids | vocabulary.end_ids)
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of what the grammar leaves no choice about: the tokenizer's own, without a space that it puts in front
        of every text; where that does not give back the very bytes, the longest token first."""
        wanted = text.encode() if isinstance(text, str) else text
        token_ids = self._encode(wanted.decode(errors="replace"))
        for own in (token_ids, token_ids[1:]):
            if b"".join(self.tokens[token_id] for token_id in own) == wanted:
                return own
        return self._longest_first(wanted)

    def _longest_first(self, wanted: bytes) -> list[int]:
        token_ids = []
        while wanted:
            length = next((n for n in range(min(self._longest, len(wanted)), 0, -1) if wanted[:n] in self._ids), 0)
            if length == 0:
                break  # none of the tokens; the grammar finds out that it ends nowhere
            token_ids.append(self._ids[wanted[:length]])
            wanted = wanted[length:]
        return token_ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = frozenset(self.special_token_ids)
        return {token: token_id for token_id, token in enumerate(self.tokens) if token and token_id not in special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)
