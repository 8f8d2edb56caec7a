"""The HTTP client of the command line: the official `openai` client, pointed at a Millrace, and what the batch commands
and the demo do with it. Failures that a person can mend become sentences.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from openai import APIConnectionError, APIError, APIStatusError, DefaultHttpxClient, OpenAI

from cli.local.access import read_key
from cli.local.preflight import api_url
from core.errors import ConfigurationError, MillraceError, NotFound, Unavailable
from core.settings import Settings

# Where this machine needs no key, the client still insists on one.
NO_KEY = "unused"
TIMEOUT_SECONDS = 60.0


class RequestFailed(MillraceError):
    """The server answered with an error; the message is its own."""

    code = "request_failed"


@dataclass(frozen=True, slots=True)
class Server:
    """Where a Millrace answers, and the key for it. certificate: the one that it must show, whatever names are in it;
    that of a known authority for its name otherwise."""

    url: str
    key: str = NO_KEY
    certificate: str = ""


def server_of(settings: Settings, url: str | None) -> Server:
    """`url`: somebody else's, whom the key of this machine does not concern, unless it is the Millrace of the settings;
    None is that."""
    own = api_url(settings)
    if url is not None and url.rstrip("/") != own:
        return Server(url.rstrip("/"), settings.api_key or NO_KEY)
    return Server(own, settings.api_key or read_key(settings) or NO_KEY, settings.tls_certificate)


def verification(server: Server) -> ssl.SSLContext | bool:
    """Of the certificate that it shows. Our own is for the names that others use, not for the address that we ask; so
    it is compared with the file itself. Raises ConfigurationError when that cannot be read."""
    if not server.certificate:
        return True
    try:
        context = ssl.create_default_context(cafile=server.certificate)
    except OSError as error:
        raise ConfigurationError(
            f"MILLRACE_TLS_CERTIFICATE: cannot read {server.certificate}, to know the API of this machine by: {error}"
        ) from error
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@contextmanager
def connect(server: Server) -> Iterator[OpenAI]:
    """Raises Unavailable when nobody answers there, RequestFailed with the server's own words otherwise."""
    url = server.url
    http = DefaultHttpxClient(verify=verification(server))
    client = OpenAI(base_url=f"{url}/v1", api_key=server.key, timeout=TIMEOUT_SECONDS, http_client=http)
    try:
        yield client
    except APIConnectionError as error:
        raise Unavailable(
            f"no Millrace answers at {url}: start one with `millrace up`, or name it with --url"
        ) from error
    except APIStatusError as error:
        raise RequestFailed(f"{url} answered {error.status_code}: {server_message(error)}") from error
    except APIError as error:  # in the middle of a stream
        raise RequestFailed(f"{url} broke the answer off: {error.message}") from error
    except httpx.HTTPError as error:
        raise Unavailable(f"the connection to {url} broke: {error}") from error
    finally:
        client.close()


def server_message(error: APIStatusError) -> str:
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else error.message


class _Error(msgspec.Struct):
    message: str


class _ErrorBody(msgspec.Struct):
    error: _Error


def refusal(url: str, response: httpx.Response) -> RequestFailed:
    """What an answer that is no success says, in the server's own words where it is Millrace."""
    try:
        words = msgspec.json.decode(response.content, type=_ErrorBody).error.message
    except msgspec.DecodeError:
        words = response.text
    return RequestFailed(f"{url} answered {response.status_code}: {words}")


def is_ready(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/readyz", timeout=2.0, verify=verification(server)).is_success
    except httpx.HTTPError:
        return False


def call(server: Server, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
    """One of Millrace's own routes. Raises Unavailable when nobody answers, RequestFailed with the server's words."""
    response = _request(server, method, path, body)
    if not response.is_success:
        raise refusal(server.url, response)
    answer: dict[str, Any] = response.json()
    return answer


def _request(server: Server, method: str, path: str, body: dict[str, object] | None) -> httpx.Response:
    try:
        return httpx.request(
            method,
            f"{server.url}{path}",
            json=body,
            headers={"Authorization": f"Bearer {server.key}"},
            timeout=TIMEOUT_SECONDS,
            verify=verification(server),
        )
    except httpx.HTTPError as error:
        raise Unavailable(
            f"no Millrace answers at {server.url}: start one with `millrace up`, or name it with --url"
        ) from error


def get_job(server: Server, job_id: str) -> dict[str, object]:
    """`GET /api/v1/jobs/{id}`: what OpenAI's batch object has no place for. Raises NotFound, Unavailable."""
    response = _request(server, "GET", f"/api/v1/jobs/{job_id}", None)
    if response.status_code == httpx.codes.NOT_FOUND:
        raise NotFound(f"no job {job_id} at {server.url}")
    if not response.is_success:
        raise refusal(server.url, response)
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
