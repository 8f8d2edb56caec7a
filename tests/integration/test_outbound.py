"""Where a POST to a URL of a user ends up, and when it is over."""

import socket
import threading

import pytest

from core.webhooks.addresses import parse_networks
from tasks.upkeep import outbound
from tasks.upkeep.outbound import SendingFailed

LOOPBACK = parse_networks("127.0.0.0/8")


def test_a_name_that_changes_its_mind_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a name server that says something public first, and this machine from then on
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1"])
    connected: list[object] = []

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    # When
    with pytest.raises(SendingFailed, match="ConnectionRefused"):
        outbound.post("https://rebind.example/", {}, b"{}", networks=(), timeout_seconds=1.0)
    # Then
    assert connected == [("93.184.216.34", 443)]


def test_a_name_with_one_address_here_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        found = [("93.184.216.34", port), ("10.0.0.1", port)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    # When / Then
    with pytest.raises(SendingFailed, match=r"10\.0\.0\.1"):
        outbound.post("https://both.example/", {}, b"{}", networks=(), timeout_seconds=1.0)


def test_an_answer_that_never_ends_is_cut_off() -> None:
    # Given a server that sends one more header every moment
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-A: ")
                try:
                    while not stopping.wait(0.02):
                        connection.sendall(b"a")
                except OSError:
                    return

        stopping = threading.Event()
        thread = threading.Thread(target=drip)
        thread.start()
        # When
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(SendingFailed, match="no whole answer within"):
            outbound.post(url, {}, b"{}", networks=LOOPBACK, timeout_seconds=0.3)
        # Then
        stopping.set()
        thread.join()


def test_a_name_server_that_does_not_answer_is_waited_for_no_longer_than_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given
    is_over = threading.Event()
    asked = threading.Semaphore(0)

    def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        asked.release()
        is_over.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        # When
        with pytest.raises(SendingFailed, match="was not resolved within"):
            outbound.post("https://slow.example/", {}, b"{}", networks=(), timeout_seconds=0.05)
        assert asked.acquire(timeout=0)
        # And when as many names as may be are being resolved
        monkeypatch.setattr(outbound, "_resolving", threading.BoundedSemaphore(1))
        outbound._resolving.acquire()
        with pytest.raises(SendingFailed, match="other names are being resolved"):
            outbound.post("https://slow.example/", {}, b"{}", networks=(), timeout_seconds=0.05)
        # Then
        assert not asked.acquire(timeout=0), "it was not asked for"
    finally:
        is_over.set()
