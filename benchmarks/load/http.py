"""A load generator that costs little: one coroutine and one kept connection per client, HTTP/1.1 written by hand.

It runs on the same cores as what it measures, and clients made for people cost more per request than the system does.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

PATH = "/v1/chat/completions"
_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """first_seconds: to the first delta with text of a stream, to the whole answer otherwise."""

    first_seconds: float
    total_seconds: float


class Connection:
    """Raises RuntimeError where an answer is none."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, url: str) -> "Connection":
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        return cls(reader, writer, parts.netloc)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def ask(self, body: dict[str, object]) -> Answer:
        begun = time.perf_counter()
        headers = await self._send(body)
        content = await self._reader.readexactly(int(headers["content-length"]))
        seconds = time.perf_counter() - begun
        if b'"choices"' not in content:
            raise RuntimeError(f"expected an answer, got {content[:200]!r}")
        return Answer(seconds, seconds)

    async def stream(self, body: dict[str, object]) -> Answer:
        begun = time.perf_counter()
        await self._send({**body, "stream": True})
        first = 0.0
        last = b""
        async for event in self._events():
            if not first and _text(event):
                first = time.perf_counter() - begun
            last = event
        if last != b"[DONE]" or not first:
            raise RuntimeError(f"expected a stream that ends with [DONE], got one that ends with {last[:200]!r}")
        return Answer(first, time.perf_counter() - begun)

    async def _send(self, body: dict[str, object]) -> dict[str, str]:
        content = json.dumps(body).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content)
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        if " 200 " not in lines[0]:
            content = await self._reader.readexactly(int(headers.get("content-length", "0")))
            raise RuntimeError(f"expected an answer, got {lines[0]}: {content[:200]!r}")
        return headers

    async def _events(self) -> AsyncIterator[bytes]:
        """The data of each server-sent event of a chunked response."""
        buffer = b""
        while size := int(await self._reader.readline(), 16):
            buffer += await self._reader.readexactly(size)
            await self._reader.readline()
            *events, buffer = buffer.split(b"\n\n")
            for event in events:
                for line in event.split(b"\n"):
                    if line.startswith(b"data: "):
                        yield line.removeprefix(b"data: ")
        await self._reader.readline()


def _text(event: bytes) -> bool:
    if event == b"[DONE]":
        return False
    choices = json.loads(event).get("choices") or [{}]
    return bool(choices[0].get("delta", {}).get("content"))


async def ask_many(url: str, body: dict[str, object], *, num_clients: int, num_requests: int) -> list[Answer]:
    """Each client asks its next question when it has its answer."""
    left = num_requests
    answers: list[Answer] = []

    async def client() -> None:
        nonlocal left
        connection = await Connection.open(url)
        while left > 0:
            left -= 1
            answers.append(await connection.ask(body))
        await connection.close()

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return answers


async def stream_at_once(url: str, body: dict[str, object], *, num_clients: int) -> list[Answer]:
    """Every client streams one answer; all begin together."""
    connections = await asyncio.gather(*(Connection.open(url) for _ in range(num_clients)))
    answers = await asyncio.gather(*(connection.stream(body) for connection in connections))
    await asyncio.gather(*(connection.close() for connection in connections))
    return list(answers)


async def stream_at_rate(url: str, bodies: list[dict[str, object]], *, per_second: float) -> list[Answer]:
    """One request after the other begins, evenly in time, whether or not earlier ones have ended."""

    async def one(body: dict[str, object], delay_seconds: float) -> Answer:
        await asyncio.sleep(delay_seconds)
        connection = await Connection.open(url)
        answer = await connection.stream(body)
        await connection.close()
        return answer

    return list(await asyncio.gather(*(one(body, index / per_second) for index, body in enumerate(bodies))))
