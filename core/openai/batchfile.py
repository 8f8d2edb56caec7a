"""Reads an OpenAI batch file line by line and says what is wrong with it. Pure: bytes in, rows or errors out.

A file is refused whole on the first bad set of lines; up to `MAX_LINE_ERRORS` are reported with their line numbers.
Memory is that of one line plus the custom_ids seen.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from core.errors import InvalidRequest, Unsupported
from core.openai.embedding import EmbeddingRequest
from core.openai.request import InferenceRequest, check_kind, parse_request

MAX_LINE_ERRORS = 100
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_CUSTOM_ID_CHARACTERS = 512
UNLIMITED_ANSWER_TOKENS = 128  # what a row that names no limit is taken to need


@dataclass(frozen=True, slots=True)
class BatchRow:
    """cost_tokens: answer tokens that it asks for at most, or a guess where it names no limit."""

    custom_id: str
    model: str
    body: str
    cost_tokens: int = UNLIMITED_ANSWER_TOKENS


@dataclass(frozen=True, slots=True)
class LineError:
    """As in OpenAI's `errors.data`: `line` counts from 1, None when the whole file is meant."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchFileError(Exception):
    """The file is refused; `errors` says why."""

    def __init__(self, errors: list[LineError]) -> None:
        super().__init__(f"{len(errors)} errors, the first: {errors[0].message}")
        self.errors = errors


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_decoder = msgspec.json.Decoder(_Line)


@dataclass(slots=True)
class BatchReader:
    """Turns lines into rows; `model` is the file's one model after the first row."""

    endpoint: str
    max_rows: int
    known_models: Collection[str]
    model_kinds: Mapping[str, str | None] = field(default_factory=dict)
    model: str | None = None
    _seen: set[str] = field(default_factory=set)
    _errors: list[LineError] = field(default_factory=list)

    def rows(self, lines: Iterable[bytes]) -> Iterator[BatchRow]:
        """Yields rows until the first error; raises BatchFileError at the end if there was any."""
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if len(self._seen) >= self.max_rows:
                self._note(
                    "too_many_requests", f"expected at most {self.max_rows:,} requests, got more; split the file"
                )
                break
            row = self._read(number, line)
            if len(self._errors) >= MAX_LINE_ERRORS:
                break
            if row is not None and not self._errors:
                yield row
        if not self._seen and not self._errors:
            self._note("empty_file", "expected at least one request, got an empty file")
        if self._errors:
            raise BatchFileError(self._errors)

    def _note(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        self._errors.append(LineError(code, message, line, param))

    def _read(self, number: int, line: bytes) -> BatchRow | None:
        try:
            envelope = _decoder.decode(line)
            body = bytes(envelope.body)
            text = body.decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._note(*_explain_line(line, error), line=number)
            return None
        try:
            self._check_envelope(envelope)
            parsed = self._check_body(body)
        except InvalidRequest as error:
            self._note(error.code, error.message, number, error.param)
            return None
        return BatchRow(envelope.custom_id, parsed.model, text, _cost_tokens(parsed))

    def _check_envelope(self, line: _Line) -> None:
        if not 0 < len(line.custom_id) <= MAX_CUSTOM_ID_CHARACTERS:
            raise InvalidRequest(
                f"expected a custom_id of 1 to {MAX_CUSTOM_ID_CHARACTERS} characters, got {len(line.custom_id)}",
                param="custom_id",
            )
        if "\0" in line.custom_id:
            raise InvalidRequest("expected a custom_id without NUL characters, got one with \\u0000", param="custom_id")
        if line.custom_id in self._seen:
            raise InvalidRequest(
                f"custom_id {line.custom_id!r} stands in an earlier line; give every request its own",
                param="custom_id",
                code="duplicate_custom_id",
            )
        self._seen.add(line.custom_id)
        if line.method != "POST":
            raise InvalidRequest(f"expected method POST, got {line.method!r}", param="method", code="invalid_method")
        if line.url != self.endpoint:
            raise InvalidRequest(
                f"expected url {self.endpoint!r}, the endpoint of the batch, got {line.url!r}",
                param="url",
                code="invalid_url" if line.url.startswith("/v1/") else "invalid_endpoint",
            )

    def _check_body(self, body: bytes) -> InferenceRequest:
        try:
            parsed = parse_request(self.endpoint, body)
            if parsed.streaming is not None:
                raise Unsupported("stream: a batch answers with a file; leave it out", param="stream")
        except InvalidRequest as error:
            param = "body" if error.param == "body" else f"body.{error.param}"
            raise InvalidRequest(error.message, param=param, code=error.code) from error
        self._check_model(parsed.model)
        return parsed

    def _check_model(self, model: str) -> None:
        if self.model is None:
            if model not in self.known_models:
                raise InvalidRequest(
                    f"model {model!r} is not served here; GET /v1/models lists those that are",
                    param="body.model",
                    code="model_not_found",
                )
            check_kind(self.endpoint, model, self.model_kinds.get(model))
            self.model = model
        elif model != self.model:
            raise InvalidRequest(
                f"expected model {self.model!r} as in the lines before, got {model!r}; a batch has one model",
                param="body.model",
                code="mismatched_model",
            )


def _cost_tokens(request: InferenceRequest) -> int:
    """To embed an input costs about as much as an answer token."""
    if isinstance(request, EmbeddingRequest):
        return len(request.texts or request.token_ids or ())
    return (request.sampling.max_tokens or UNLIMITED_ANSWER_TOKENS) * request.num_answers


def _explain_line(line: bytes, error: Exception) -> tuple[str, str]:
    """Code and message for a line that is not a request object: not JSON at all, or JSON of another shape."""
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as syntax:
        return "invalid_json_line", f"expected one JSON object in the line, got something else: {syntax}"
    if "custom_id" in str(error):
        return "missing_custom_id", f"expected a custom_id of text: {error}"
    return "invalid_line", f'expected {{"custom_id", "method", "url", "body"}}: {error}'


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cuts a stream of blocks into lines without holding more than one line and one block.
    Raises BatchFileError on a line over MAX_LINE_BYTES."""
    rest = b""
    number = 0
    for block in blocks:
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        number += len(lines)
        yield from lines
        if len(rest) > MAX_LINE_BYTES:
            raise BatchFileError(
                [LineError("line_too_long", f"expected lines of at most {MAX_LINE_BYTES:,} bytes", number + 1)]
            )
    if rest:
        yield rest
