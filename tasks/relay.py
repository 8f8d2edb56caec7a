"""Tells the API how an online answer grows and that it is committed, through a Redis stream per job that expires by
itself. Where nobody reads along, the end alone is told, on a channel that every API process hears.

Both only spare the wait and the question: a stream's length is bounded, what is told may be lost at any time, and
whoever waits finds the whole answer in PostgreSQL. A short one is told with the end, when it is committed. Nobody who
tells waits for Redis: one thread sends what has gathered, in its order.
"""

import logging
import threading
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby

import msgspec
from redis import Redis
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from core.protocol import TokenLogprob
from db.chunks import Outcome

logger = logging.getLogger(__name__)

STREAM_LIFETIME_SECONDS = 600
END_LIFETIME_SECONDS = 60  # whoever comes later asks PostgreSQL
MAX_END_CHARACTERS = 32_768  # of longer answers only the end is told
STREAM_ENTRIES = 2048  # a reader that is further behind waits for the whole answer
GATHER_SECONDS = 0.02
MAX_GATHERED = 20_000
ENDS_CHANNEL = "millrace:ends"
DONE = "done"
INTERRUPTED = "interrupted"
PIECES = "pieces"


def answer_stream(job_public_id: str) -> str:
    return f"millrace:answer:{job_public_id}"


class Piece(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some text of one choice of one request of a job. offset: characters of the choice before it.

    attempt: of the chunk; pieces of different attempts do not fit together. num_tokens: of the choice, up to its end.
    tool_format: of calls in the text.
    """

    attempt: int
    request: int
    choice: int
    offset: int
    text: str
    num_tokens: int
    prompt_tokens: int = 0
    logprobs: list[TokenLogprob] | None = None
    tool_format: str = ""


class End(msgspec.Struct, frozen=True):
    """Of a job: the outcome of every request, in order, as committed. attempt: of the chunk."""

    attempt: int
    outcomes: list[Outcome]


class Heard(msgspec.Struct, frozen=True, array_like=True):
    """On the channel: that a job has ended, and with which `End`, where that is short."""

    job: str
    end: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True)
class _Told:
    """What to tell of a job: an event, or a piece. is_streamed: to its stream."""

    job: str
    what: Piece | str
    attempt: int
    end: End | None = None
    is_streamed: bool = True


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(list[Piece])
_end_decoder = msgspec.json.Decoder(End)
_heard_decoder = msgspec.json.Decoder(list[Heard])


def decode_pieces(data: bytes) -> list[Piece]:
    """Raises msgspec.DecodeError on what no release of ours wrote."""
    return _decoder.decode(data)


def decode_end(data: bytes) -> End:
    """Raises msgspec.DecodeError on what no release of ours wrote."""
    return _end_decoder.decode(data)


def decode_heard(data: bytes) -> list[Heard]:
    """Raises msgspec.DecodeError on what no release of ours wrote."""
    return _heard_decoder.decode(data)


class RedisRelay:
    """`close()` at the end. All methods may be called from any thread, and fail open: without Redis the waiter finds
    the answer at its next look into PostgreSQL."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._gathered: list[_Told] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_urgent = False  # somebody waits for an end
        self._thread: threading.Thread | None = None

    def announce(self, job_public_id: str, end: End | None = None, *, is_streamed: bool = True) -> None:
        """The outcome is committed. Returns at once."""
        self._gather(_Told(job_public_id, DONE, 0, end, is_streamed), is_urgent=True)

    def publish(self, job_public_id: str, piece: Piece) -> None:
        """Returns at once. What is too much for the moment is dropped: the reader sees the gap."""
        self._gather(_Told(job_public_id, piece, piece.attempt))

    def interrupt(self, job_public_id: str, attempt: int) -> None:
        """Nothing more comes of this attempt. Returns at once."""
        self._gather(_Told(job_public_id, INTERRUPTED, attempt))

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _gather(self, told: _Told, *, is_urgent: bool = False) -> None:
        with self._changed:
            if self._is_closing or (len(self._gathered) >= MAX_GATHERED and not is_urgent):
                return
            self._gathered.append(told)
            self._is_urgent = self._is_urgent or is_urgent
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        """The first piece goes out at once; those that come meanwhile gather for a moment, but for an end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._gathered or self._is_closing)
                told, self._gathered, self._is_urgent = self._gathered, [], False
            if told:
                self._tell(told)
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or self._is_urgent, GATHER_SECONDS)
                if self._is_closing and not self._gathered:
                    return

    def _tell(self, told: list[_Told]) -> None:
        """What cannot be told is lost, as the relay may lose anything; the thread goes on for everybody else."""
        try:
            self._write(told)
        except Exception:
            logger.exception("%d pieces and ends could not be told", len(told), extra={"event": "relay.failed"})

    def _write(self, told: list[_Told]) -> None:
        by_job: defaultdict[str, list[_Told]] = defaultdict(list)
        for one in told:
            if one.is_streamed:
                by_job[one.job].append(one)
        heard = [Heard(one.job, _short(one.end)) for one in told if one.what == DONE]
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                if heard:
                    pipeline.publish(ENDS_CHANNEL, _encoder.encode(heard))
                for job, ones in by_job.items():
                    stream = answer_stream(job)
                    for fields in _entries(ones):
                        pipeline.xadd(stream, fields, maxlen=STREAM_ENTRIES, approximate=True)
                    has_ended = any(one.what == DONE for one in ones)
                    pipeline.expire(stream, END_LIFETIME_SECONDS if has_ended else STREAM_LIFETIME_SECONDS)
                pipeline.execute()
        except RedisError as error:
            logger.warning("%d answers grow or ended, but nobody could be told: %s", len(told), error)


def _entries(told: list[_Told]) -> list[dict[FieldT, EncodableT]]:
    """In order; one entry for pieces that follow each other."""
    entries: list[dict[FieldT, EncodableT]] = []
    for are_pieces, ones in groupby(told, key=lambda one: isinstance(one.what, Piece)):
        if are_pieces:
            entries.append({"event": PIECES, "pieces": _encoder.encode([one.what for one in ones])})
        else:
            entries += [_event(one) for one in ones]
    return entries


def _event(told: _Told) -> dict[FieldT, EncodableT]:
    fields: dict[FieldT, EncodableT] = {"event": str(told.what), "attempt": told.attempt}
    if told.end is not None and _is_short(told.end):
        fields["end"] = _encoder.encode(told.end)
    return fields


def _short(end: End | None) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(end) if end is not None and _is_short(end) else b"null")


def _is_short(end: End) -> bool:
    return sum(len(outcome.body) for outcome in end.outcomes) <= MAX_END_CHARACTERS
