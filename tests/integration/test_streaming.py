"""Streams over the real PostgreSQL and Valkey, with a worker that the test plays: what a reader gets whatever happens
to the relay, the run and the reader."""

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from anyio.abc import TaskGroup
from redis import Redis
from sqlalchemy import text

from api.app import build_context
from api.context import Context
from api.openai.online import narrate
from api.streaming.response import AnswerStream, Ending
from core.job import JobState, ServiceClass
from core.openai.completion import CHAT_ENDPOINT, parse_body
from core.redis_url import client_url
from db import chunks, jobs, online
from db.chunks import Lease, Outcome
from db.jobs import NewOnlineRequest
from db.tables import JobRow
from tasks.relay import STREAM_ENTRIES, End, Piece, answer_stream
from tasks.upkeep.finalizing import finalize
from tests.polling import DEADLINE_SECONDS
from tests.world import MODEL, World

BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True})
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "prompt_tokens_details": {"cached_tokens": 0}}


def whole(text: str) -> Outcome:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "logprobs": None, "finish_reason": "stop", "message": message}
    return Outcome(0, 200, json.dumps({"choices": [choice], "usage": USAGE}))


def piece_of(data: dict[str, Any]) -> str:
    return str(data["choices"][0]["delta"].get("content", ""))


@dataclass
class Reader:
    """Collects what it is sent. While `is_slow`, it takes nothing; `leave` hangs up."""

    job: JobRow
    stream: AnswerStream
    sent: list[MutableMapping[str, Any]] = field(default_factory=list)
    endings: list[str] = field(default_factory=list)
    hung_up: anyio.Event = field(default_factory=anyio.Event)
    may_write: anyio.Event = field(default_factory=anyio.Event)

    async def receive(self) -> MutableMapping[str, Any]:
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)
        await self.may_write.wait()

    async def read(self) -> None:
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": CHAT_ENDPOINT, "headers": []}
        await self.stream(scope, self.receive, self.send)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def body(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        blocks = [block.split("\n") for block in self.body.split("\n\n") if "id: " in block]
        lines = [[line for line in block if line[0] != ":"] for block in blocks]
        return [(one[0].removeprefix("id: "), json.loads(one[1].removeprefix("data: "))) for one in lines]

    @property
    def text(self) -> str:
        return "".join(piece_of(data) for _, data in self.events)


@dataclass
class Scene:
    world: World
    context: Context

    def job(self) -> JobRow:
        request = NewOnlineRequest(endpoint=CHAT_ENDPOINT, model=MODEL, body=BODY, expires_after=timedelta(minutes=5))
        with self.world.database.begin() as session:
            return jobs.create_online(session, request)

    def reader(
        self,
        job: JobRow,
        last_event_id: str | None = None,
        *,
        keep_alive: float = 60.0,
        is_slow: bool = False,
        ending: Ending | None = None,
    ) -> Reader:
        narrator = narrate(job, parse_body(CHAT_ENDPOINT, BODY.encode()), last_event_id)
        endings: list[str] = []

        def note(what: str) -> Callable[[], Awaitable[None]]:
            async def noted() -> None:
                endings.append(what)

            return noted

        ending = ending or Ending(note("left"), note("failed"))
        stream = AnswerStream(self.context, job, narrator, ending, keep_alive)
        reader = Reader(job, stream, endings=endings)
        if not is_slow:
            reader.may_write.set()
        return reader

    def publish(self, job: JobRow, offset: int, text: str, attempt: int = 1) -> None:
        self.world.services.relay.publish(job.public_id, Piece(attempt, 0, 0, offset, text, offset + len(text)))

    def claim(self) -> Lease:
        with self.world.database.begin() as session:
            lease = chunks.claim(
                session,
                owner="worker",
                service_class=ServiceClass.ONLINE.value,
                models=[MODEL],
                lease_seconds=60.0,
            )
        assert lease is not None
        return lease

    def finish(self, job: JobRow, text: str, *, is_announced: bool = True) -> None:
        self.world.write(self.claim(), [whole(text)])
        if is_announced:
            self.world.services.relay.announce(job.public_id)

    def redis(self) -> Redis:
        assert self.world.services.settings.redis_url is not None
        return Redis.from_url(client_url(self.world.services.settings.redis_url))


@pytest.fixture
def scene(world: World) -> Iterator[Scene]:
    context = build_context(world.services.settings)
    yield Scene(world, context)
    context.database.close()
    world.services.relay.close()


def play(scene: Scene, plot: Callable[[TaskGroup], Awaitable[None]]) -> None:
    async def whole_plot() -> None:
        try:
            with anyio.fail_after(DEADLINE_SECONDS):
                async with anyio.create_task_group() as group:
                    await plot(group)
        finally:
            await scene.context.redis.aclose()

    anyio.run(whole_plot)


async def until(holds: Callable[[], object]) -> None:
    while not holds():
        await anyio.sleep(0.01)


def test_pieces_are_told_as_they_come_and_whoever_comes_back_gets_the_rest(scene: Scene) -> None:
    job = scene.job()
    reader = scene.reader(job)

    async def plot(group: TaskGroup) -> None:
        # Given
        group.start_soon(reader.read)
        scene.publish(job, 0, "Hel")
        await until(lambda: reader.text == "Hel")
        scene.publish(job, 3, "lo ")
        await until(lambda: reader.text == "Hello ")
        # When
        scene.finish(job, "Hello wheel")
        await until(lambda: reader.body.endswith("data: [DONE]\n\n"))
        # Then
        assert (reader.status, reader.text, reader.endings) == (200, "Hello wheel", [])
        for seen, (event_id, _) in enumerate(reader.events, 1):
            again = scene.reader(job, event_id)
            await again.read()
            num_characters = len("".join(piece_of(data) for _, data in reader.events[:seen]))
            assert again.text == "Hello wheel"[num_characters:]
            assert again.body.endswith("data: [DONE]\n\n")

    play(scene, plot)


@pytest.mark.parametrize("loss", ["flushed", "away", "silent"])
def test_without_the_relay_the_rest_comes_from_the_database(scene: Scene, loss: str) -> None:
    job = scene.job()
    reader = scene.reader(job)

    async def plot(group: TaskGroup) -> None:
        group.start_soon(reader.read)
        scene.publish(job, 0, "Hel")
        await until(lambda: reader.text == "Hel")
        # When
        if loss == "flushed":
            scene.redis().flushdb()
        if loss == "away":
            await scene.context.redis.connection_pool.disconnect(inuse_connections=True)
        scene.publish(job, 5, " wh")  # what lay between was lost
        scene.finish(job, "Hello wheel", is_announced=loss != "silent")
        # Then
        await until(lambda: reader.body.endswith("data: [DONE]\n\n"))
        assert reader.text == "Hello wheel"

    play(scene, plot)


def test_a_run_that_breaks_off_after_the_first_word_ends_in_an_error_event(scene: Scene) -> None:
    job = scene.job()
    reader = scene.reader(job)

    async def plot(group: TaskGroup) -> None:
        group.start_soon(reader.read)
        scene.publish(job, 0, "Hel")
        await until(lambda: reader.text == "Hel")
        # When
        scene.world.services.relay.interrupt(job.public_id, 1)
        # Then
        await until(lambda: reader.body.endswith("data: [DONE]\n\n"))
        error = json.loads(reader.body.split("\n\n")[-3].removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == ("stream_interrupted", "server_error")
        await until(lambda: reader.endings == ["failed"])  # behind the last word

    play(scene, plot)


def test_a_run_that_breaks_off_before_is_never_seen(scene: Scene) -> None:
    job = scene.job()
    reader = scene.reader(job)

    async def plot(group: TaskGroup) -> None:
        group.start_soon(reader.read)
        scene.world.services.relay.interrupt(job.public_id, 1)
        scene.publish(job, 0, "Hello", attempt=2)
        await until(lambda: reader.text == "Hello")
        scene.finish(job, "Hello")
        await until(lambda: reader.body.endswith("data: [DONE]\n\n"))
        assert "error" not in reader.body

    play(scene, plot)


def test_what_fails_before_the_first_word_has_a_status_of_its_own(scene: Scene) -> None:
    job = scene.job()
    reader = scene.reader(job)
    error = {"error": {"message": "too long", "code": "context_length_exceeded"}}

    async def plot(group: TaskGroup) -> None:
        scene.world.write(scene.claim(), [Outcome(0, 400, json.dumps(error))])
        await reader.read()
        assert reader.status == 400
        assert json.loads(reader.body) == error

    play(scene, plot)


def test_a_reader_that_leaves_before_the_first_word_is_noticed_at_once(scene: Scene) -> None:
    reader = scene.reader(scene.job())

    async def plot(group: TaskGroup) -> None:
        group.start_soon(reader.read)
        reader.hung_up.set()
        await until(lambda: reader.endings == ["left"])
        assert reader.sent == []

    play(scene, plot)


def test_a_reader_that_does_not_read_holds_nobody_up_and_gets_everything_at_the_end(scene: Scene) -> None:
    # Given an answer of more pieces than the relay keeps
    job = scene.job()
    reader = scene.reader(job, is_slow=True)
    text = "".join(chr(97 + number % 26) for number in range(3 * STREAM_ENTRIES))

    async def plot(group: TaskGroup) -> None:
        group.start_soon(reader.read)
        scene.publish(job, 0, text[:1])
        await until(lambda: reader.sent)
        # When it takes nothing while all of it is told, each piece in an entry of its own
        with scene.redis().pipeline(transaction=False) as pipeline:
            for number in range(1, len(text)):
                pieces = msgspec.json.encode([Piece(1, 0, 0, number, text[number], number + 1)])
                pipeline.xadd(
                    answer_stream(job.public_id),
                    {"event": "pieces", "pieces": pieces},
                    maxlen=STREAM_ENTRIES,
                    approximate=True,
                )
            await anyio.to_thread.run_sync(pipeline.execute)
        scene.finish(job, text)
        reader.may_write.set()
        # Then
        await until(lambda: reader.body.endswith("data: [DONE]\n\n"))
        assert reader.text == text

    play(scene, plot)


def test_a_silent_stream_is_kept_alive_by_comments_that_are_no_events(scene: Scene) -> None:
    job = scene.job()
    reader = scene.reader(job, keep_alive=0.0)

    async def plot(group: TaskGroup) -> None:
        group.start_soon(reader.read)
        await until(lambda: reader.body.count(": keep-alive\n") >= 1)
        assert "\n\n" not in reader.body
        scene.finish(job, "Hello")
        await until(lambda: reader.body.endswith("data: [DONE]\n\n"))
        assert reader.text == "Hello"

    play(scene, plot)


def test_a_job_that_was_stopped_ends_its_stream(scene: Scene) -> None:
    job = scene.job()
    reader = scene.reader(job)

    async def plot(group: TaskGroup) -> None:
        with scene.world.database.begin() as session:
            jobs.stop(session, job, JobState.CANCELLED)
        await anyio.to_thread.run_sync(finalize, scene.world.services, job.public_id)
        await reader.read()
        assert reader.status == 500
        assert json.loads(reader.body)["error"]["code"] == "not_executed"

    play(scene, plot)


def test_a_reader_believes_the_end_that_the_relay_tells_and_asks_where_it_cannot_be_read(scene: Scene) -> None:
    # Given an end that only the relay has, and one of another release beside the committed answer
    told, unreadable = scene.job(), scene.job()
    relay = scene.world.services.relay
    scene.finish(told, "", is_announced=False)
    with scene.world.database.begin() as session:
        session.execute(text("DELETE FROM outcomes"))
    relay.announce(told.public_id, End(1, [whole("from the relay")]))
    scene.finish(unreadable, "from PostgreSQL", is_announced=False)
    scene.redis().xadd(answer_stream(unreadable.public_id), {"event": "done", "end": b"{"})
    readers = [scene.reader(told), scene.reader(unreadable)]

    async def plot(group: TaskGroup) -> None:
        for reader in readers:
            await reader.read()

    # When
    play(scene, plot)
    # Then
    assert [reader.text for reader in readers] == ["from the relay", "from PostgreSQL"]


def test_the_end_of_a_job_that_has_ended_is_not_waited_for(scene: Scene) -> None:
    # Given a relay that has nothing any more
    job = scene.job()
    scene.finish(job, "an answer", is_announced=False)
    with scene.world.database.begin() as session:
        assert online.complete(session, job.id)
    reader = scene.reader(scene.world.job(job.public_id), keep_alive=0.0)

    async def plot(group: TaskGroup) -> None:
        await reader.read()

    # When / Then it is told without a silence before
    play(scene, plot)
    assert reader.text == "an answer"
    assert "keep-alive" not in reader.body
