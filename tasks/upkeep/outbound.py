"""Sends one HTTP POST to a URL that a user named, without being led anywhere else: the name is resolved once, every
address is judged, and the connection goes to one that was judged, so that a name that changes its mind gains nothing.
No redirects, no proxies, a bound on the whole time, and nothing of the answer but its status is read.
"""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from queue import Empty, SimpleQueue

from core.errors import InvalidRequest
from core.webhooks.addresses import Address, Networks, check_url, is_listed, is_public

DEFAULT_PORTS = {"https": 443, "http": 80}
MOST_RESOLVING = 32
LEAST_SECONDS = 0.05  # for the rest, where a name took nearly all the time

_resolving = threading.BoundedSemaphore(MOST_RESOLVING)


class SendingFailed(Exception):
    """There was no answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    address: Address
    host: str
    port: int
    authority: str
    path: str
    is_encrypted: bool


def post(url: str, headers: Mapping[str, str], body: bytes, *, networks: Networks, timeout_seconds: float) -> int:
    """The status of the answer. Raises SendingFailed."""
    try:
        ends_at = time.monotonic() + timeout_seconds
        target = resolve(url, networks, timeout_seconds)
        with _connected(target, max(LEAST_SECONDS, ends_at - time.monotonic())) as connection:
            connection.request("POST", target.path, body, {**headers, "Host": target.authority})
            return connection.getresponse().status
    except (OSError, http.client.HTTPException, InvalidRequest) as error:
        raise SendingFailed(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


def resolve(url: str, networks: Networks, timeout_seconds: float) -> Target:
    """Raises SendingFailed when any address of the name is none that a webhook may be sent to, InvalidRequest for a URL
    that is none, OSError when the name is unknown or not known in time."""
    parts = check_url(url, networks)
    host = parts.hostname or ""
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    addresses = _addresses(host, port, timeout_seconds)
    is_encrypted = parts.scheme == "https"
    for address in addresses:
        if not (is_listed(address, networks) or (is_public(address) and is_encrypted)):
            raise SendingFailed(
                f"{host} is {address}, where webhooks may not be sent; MILLRACE_WEBHOOK_NETWORKS can allow it"
            )
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(addresses[0], host, port, parts.netloc, path, is_encrypted)


def _addresses(host: str, port: int, timeout_seconds: float) -> Sequence[Address]:
    """The system's resolver waits as long as it likes, so it is asked in a thread that may be left behind; so many may
    be, and ask for nobody any more. Raises OSError."""
    if not _resolving.acquire(timeout=timeout_seconds):
        raise TimeoutError(f"the name {host} was not resolved: {MOST_RESOLVING} other names are being resolved")
    answers: SimpleQueue[Sequence[Address] | OSError] = SimpleQueue()
    threading.Thread(target=_ask, args=(host, port, answers), name=f"resolve {host}", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_seconds)
    except Empty as error:
        raise TimeoutError(f"the name {host} was not resolved within {timeout_seconds:g} s") from error
    if isinstance(answer, OSError):
        raise answer
    return answer


def _ask(host: str, port: int, answers: "SimpleQueue[Sequence[Address] | OSError]") -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        answers.put([ip_address(str(entry[4][0]).partition("%")[0]) for entry in found])
    except OSError as error:
        answers.put(error)
    except ValueError as error:  # a name that is none, or an address of another kind
        answers.put(OSError(str(error)))
    finally:
        _resolving.release()


@contextmanager
def _connected(target: Target, timeout_seconds: float) -> Iterator[http.client.HTTPConnection]:
    """Over a socket that is shut when the time is over: one byte after the other could each come in time, for ever."""
    raw = socket.create_connection((str(target.address), target.port), timeout_seconds)
    handle = raw.dup()  # of the same connection; encryption takes `raw` away
    is_over = threading.Event()
    guard = threading.Timer(timeout_seconds, _shut, [handle, is_over])
    guard.daemon = True
    guard.start()
    try:
        connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_seconds)
        connection.auto_open = 0  # it would resolve the name again
        connection.sock = _encrypted(raw, target.host) if target.is_encrypted else raw
        with connection.sock:
            yield connection
        if is_over.is_set():  # half an answer looks like a whole one
            raise TimeoutError(f"no whole answer within {timeout_seconds:g} s")
    finally:
        guard.cancel()
        handle.close()


def _shut(handle: socket.socket, is_over: threading.Event) -> None:
    is_over.set()
    with suppress(OSError):  # the connection ended in the same moment
        handle.shutdown(socket.SHUT_RDWR)


def _encrypted(raw: socket.socket, host: str) -> ssl.SSLSocket:
    try:
        return ssl.create_default_context().wrap_socket(raw, server_hostname=host)
    except BaseException:
        raw.close()
        raise
