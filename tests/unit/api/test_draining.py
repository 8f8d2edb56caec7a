import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from api.draining import Drain, Draining


class Scene:
    """An app that waits for ever, after it has begun its answer if `begins`."""

    def __init__(self, *, begins: bool) -> None:
        self.begins = begins
        self.sent: list[Message] = []
        self.has_cleaned_up = False

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        finally:
            self.has_cleaned_up = True

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def drain(self) -> None:
        """The server is asked to end while a request is under way."""
        drain = Drain(finish_seconds=0.0)
        drain.attach()
        draining = Draining(self.app, drain=drain)
        request = asyncio.ensure_future(draining({"type": "http"}, self.receive, self.send))
        await asyncio.sleep(0)
        drain.begin()
        drain.begin()
        await request


def test_who_still_waits_when_the_server_ends_is_told_to_come_again() -> None:
    # Given / When
    scene = Scene(begins=False)
    asyncio.run(scene.drain())
    # Then
    start = scene.sent[0]
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"5"
    assert scene.has_cleaned_up


def test_an_answer_that_has_begun_is_cut_off() -> None:
    # Given / When
    scene = Scene(begins=True)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scene.drain())
    # Then
    assert [message.get("status") for message in scene.sent] == [200]
    assert scene.has_cleaned_up


def test_before_it_serves_there_is_nothing_to_drain() -> None:
    Drain().begin()
