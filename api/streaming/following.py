"""Follows an online job to its end: what the relay tells on the way, and the answer from PostgreSQL.

The relay may lose everything at any time. Whenever it is silent, away or says that the job is done, the database is
asked, which alone knows. Where that is away, it is asked again: whoever waits knows for how long.
"""

import logging
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from typing import cast

import msgspec
from anyio import sleep
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from api.context import Context
from api.streaming.ends import Waiter
from core.errors import Unavailable
from core.job import TERMINAL_JOB_STATES, JobState
from db import online
from db.tables import JobRow, OutcomeRow
from tasks.relay import DONE, INTERRUPTED, PIECES, End, Piece, answer_stream, decode_end, decode_pieces

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PAUSE_SECONDS = 0.05
ENTRIES_PER_READ = 256


@dataclass(frozen=True, slots=True)
class Grown:
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class Interruption:
    """Nothing more comes of this attempt; the job may run again."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing has happened for a while."""


@dataclass(frozen=True, slots=True)
class Ended:
    """outcomes: of every request of the job. attempt: the last one."""

    outcomes: list[OutcomeRow]
    attempt: int


Told = Grown | Interruption | Silence | Ended
_Entries = list[tuple[bytes, dict[bytes, bytes]]]


async def follow(context: Context, job: JobRow) -> AsyncGenerator[Told, None]:
    """From the beginning, as far as the relay still has it. The last thing told is `Ended`; there is no other end."""
    if JobState(job.state) in TERMINAL_JOB_STATES:
        ended = await run_in_threadpool(_read_end, context, job)
        if ended is not None:
            yield ended
            return
    last: bytes | str = "0"
    while True:
        entries = await _read_relay(context, job, last)
        is_done = not entries
        for number, fields in entries:
            last = number
            told = _told(job, fields)
            if told is not None:
                yield told
            if isinstance(told, Ended):
                return
            is_done = is_done or fields.get(b"event") == DONE.encode()
        if is_done:
            ended = await look(context, job)
            if ended is not None:
                yield ended
                return
            yield Silence()
            if entries:  # told before it was committed, or by somebody else: not to be asked in a hurry
                await sleep(PAUSE_SECONDS)


async def _read_relay(context: Context, job: JobRow, last: bytes | str) -> _Entries:
    """What is new behind `last`; nothing when it stays silent, or is away."""
    wait = int(LOOK_SECONDS * 1000)
    try:
        answer = await context.redis.xread({answer_stream(job.public_id): last}, count=ENTRIES_PER_READ, block=wait)
    except RedisError as error:
        logger.warning("job %s: waiting without Redis: %s", job.public_id, error)
        await sleep(LOOK_SECONDS)
        return []
    streams = cast(list[tuple[bytes, _Entries]], answer)
    return [entry for _, entries in streams for entry in entries]


def _told(job: JobRow, fields: dict[bytes, bytes]) -> Told | None:
    event = fields.get(b"event", b"").decode()
    if event == PIECES:
        try:
            return Grown(decode_pieces(fields[b"pieces"]))
        except (msgspec.DecodeError, KeyError) as error:  # of another release: the whole answer will do
            logger.warning("pieces that cannot be read are left out: %s", error)
    if event == DONE and b"end" in fields:
        try:
            return _ended(job, decode_end(fields[b"end"]))
        except msgspec.DecodeError as error:  # of another release: PostgreSQL knows it too
            logger.warning("an end that cannot be read is left out: %s", error)
    if event == INTERRUPTED:
        return Interruption(int(fields.get(b"attempt", b"0")))
    return None


def _ended(job: JobRow, end: End) -> Ended:
    """Rows as they were committed, though nobody asked PostgreSQL."""
    rows = [OutcomeRow(job_id=job.id, attempt=end.attempt, **asdict(outcome)) for outcome in end.outcomes]
    return Ended(rows, end.attempt)


async def await_end(context: Context, job: JobRow, waiter: Waiter) -> Ended:
    """For whom nothing but the end is of interest, and who would have heard of one before now."""
    while True:
        has_heard = waiter.has_heard
        end = await waiter.hear(LOOK_SECONDS)
        if end is not None:
            return _ended(job, end)
        ended = await look(context, job)
        if ended is not None:
            return ended
        if has_heard:  # told before it was committed, or by somebody else: not to be asked in a hurry
            await sleep(PAUSE_SECONDS)


async def look(context: Context, job: JobRow) -> Ended | None:
    """What PostgreSQL knows; nothing where it is away, after a while."""
    try:
        return await run_in_threadpool(_read_end, context, job)
    except Unavailable as error:
        logger.warning("job %s: waiting without PostgreSQL: %s", job.public_id, error)
        await sleep(LOOK_SECONDS)
        return None


def _read_end(context: Context, job: JobRow) -> Ended | None:
    with context.database.begin() as session:
        end = online.read_end(session, job)
    return None if end is None else Ended(end.outcomes, end.attempt)
