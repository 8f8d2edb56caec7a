"""The HTTP client of the command line: the official `openai` client, pointed at a Millrace, and what the batch commands
and the demo do with it. Failures that a person can mend become sentences.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import APIConnectionError, APIStatusError, OpenAI

from cli.local.access import read_key
from cli.local.preflight import api_url
from core.errors import MillraceError, NotFound, Unavailable
from core.settings import Settings

# Where this machine needs no key, the client still insists on one.
NO_KEY = "unused"
TIMEOUT_SECONDS = 60.0


class RequestFailed(MillraceError):
    """The server answered with an error; the message is its own."""

    code = "request_failed"


@dataclass(frozen=True, slots=True)
class Server:
    """Where a Millrace answers, and the key for it."""

    url: str
    key: str = NO_KEY


def server_of(settings: Settings, url: str | None) -> Server:
    """`url`: somebody else's, whom the key of this machine does not concern; None is the Millrace of the settings."""
    if url is not None:
        return Server(url.rstrip("/"), settings.api_key or NO_KEY)
    return Server(api_url(settings), settings.api_key or read_key(settings) or NO_KEY)


@contextmanager
def connect(url: str, key: str = NO_KEY) -> Iterator[OpenAI]:
    """Raises Unavailable when nobody answers there, RequestFailed with the server's own words otherwise."""
    client = OpenAI(base_url=f"{url}/v1", api_key=key, timeout=TIMEOUT_SECONDS)
    try:
        yield client
    except APIConnectionError as error:
        raise Unavailable(
            f"no Millrace answers at {url}: start one with `millrace up`, or name it with --url"
        ) from error
    except APIStatusError as error:
        raise RequestFailed(f"{url} answered {error.status_code}: {server_message(error)}") from error
    finally:
        client.close()


def server_message(error: APIStatusError) -> str:
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else error.message


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def call(server: Server, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
    """One of Millrace's own routes. Raises Unavailable when nobody answers, RequestFailed with the server's words."""
    headers = {"Authorization": f"Bearer {server.key}"}
    try:
        response = httpx.request(method, f"{server.url}{path}", json=body, headers=headers, timeout=TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        raise Unavailable(
            f"no Millrace answers at {server.url}: start one with `millrace up`, or name it with --url"
        ) from error
    if not response.is_success:
        raise RequestFailed(f"{server.url} answered {response.status_code}: {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def get_job(url: str, job_id: str, key: str = NO_KEY) -> dict[str, object]:
    """`GET /api/v1/jobs/{id}`: what OpenAI's batch object has no place for. Raises NotFound, Unavailable."""
    try:
        response = httpx.get(
            f"{url}/api/v1/jobs/{job_id}", headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_SECONDS
        )
    except httpx.HTTPError as error:
        raise Unavailable(f"no Millrace answers at {url}: {error}") from error
    if response.status_code == httpx.codes.NOT_FOUND:
        raise NotFound(f"no job {job_id} at {url}")
    if not response.is_success:
        raise RequestFailed(f"{url} answered {response.status_code}: {response.text}")
    job: dict[str, object] = response.json()
    return job


def download(client: OpenAI, file_id: str | None, target: Path) -> int:
    """Writes a file of the server to disk as it comes and returns how many lines it has; no file is no line."""
    if file_id is None:
        target.write_bytes(b"")  # an older result must not be taken for this one
        return 0
    num_lines = 0
    with client.files.with_streaming_response.content(file_id) as response, target.open("wb") as file:
        for block in response.iter_bytes():
            num_lines += block.count(b"\n")
            file.write(block)
    return num_lines
