"""A stream that the server cuts off because it ends: its reader is told so, and nobody runs the rest for nothing."""

from anyio.abc import TaskGroup

from api.draining import Drain, Draining
from core.openai.completion import CHAT_ENDPOINT
from db.tables import JobRow
from tests.integration.test_streaming import Reader, Scene, play, scene, until

__all__ = ["scene"]


async def read_until_the_end_of_the_server(reader: Reader, group: TaskGroup, drain: Drain) -> None:
    """As the API has it: the middleware around the stream."""
    drain.attach()
    app = Draining(reader.stream, drain=drain)
    scope: dict[str, object] = {"type": "http", "method": "POST", "path": CHAT_ENDPOINT, "headers": []}
    group.start_soon(app, scope, reader.receive, reader.send)


async def read_some(scene: Scene, job: JobRow, reader: Reader, group: TaskGroup, drain: Drain) -> None:
    await read_until_the_end_of_the_server(reader, group, drain)
    scene.publish(job, 0, "to ")
    await until(lambda: reader.text == "to ")


def test_a_stream_that_is_cut_off_ends_with_an_error_and_its_job_is_let_go(scene: Scene) -> None:
    # Given a reader who has some of the answer
    job = scene.job()
    reader, drain = scene.reader(job), Drain(finish_seconds=0.0)

    async def plot(group: TaskGroup) -> None:
        await read_some(scene, job, reader, group, drain)
        # When
        drain.begin()
        await until(lambda: not drain.running)

    play(scene, plot)
    # Then
    assert reader.body.endswith("data: [DONE]\n\n")
    assert '"code":"interrupted"' in reader.body
    assert "the server is being stopped" in reader.body
    assert reader.endings == ["left"]
    assert reader.sent[-1]["more_body"] is False


def test_a_stream_that_has_not_begun_is_told_to_come_again_with_a_status(scene: Scene) -> None:
    # Given
    reader, drain = scene.reader(scene.job()), Drain(finish_seconds=0.0)

    async def plot(group: TaskGroup) -> None:
        await read_until_the_end_of_the_server(reader, group, drain)
        await until(lambda: drain.running)
        # When
        drain.begin()
        await until(lambda: not drain.running)

    play(scene, plot)
    # Then
    assert reader.status == 503
    assert reader.endings == ["left"]


def test_a_stream_that_ends_in_time_is_not_cut_off(scene: Scene) -> None:
    # Given
    job = scene.job()
    reader, drain = scene.reader(job), Drain(finish_seconds=3600.0)

    async def plot(group: TaskGroup) -> None:
        await read_some(scene, job, reader, group, drain)
        # When
        drain.begin()
        scene.finish(job, "to grind")
        await until(lambda: not drain.running)

    play(scene, plot)
    # Then
    assert reader.text == "to grind"
    assert "error" not in reader.body
    assert reader.endings == []
