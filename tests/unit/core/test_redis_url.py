import pytest

from core.redis_url import broker_url, client_url


@pytest.mark.parametrize("url", ["redis://host:6379/0", "rediss://user:secret@host:6380/2?ssl_cert_reqs=required"])
def test_a_url_over_tcp_is_the_same_for_both_libraries(url: str) -> None:
    assert client_url(url) == url
    assert broker_url(url) == url


def test_a_unix_socket_is_respelled_for_the_broker_and_back() -> None:
    # Given
    client, broker = "unix:///run/a%20b/valkey.sock?db=3", "redis+socket:///run/a%20b/valkey.sock?virtual_host=3"

    # Then
    assert broker_url(client) == broker
    assert client_url(broker) == client
    assert broker_url(broker) == broker
    assert client_url(client) == client


def test_a_password_and_other_parameters_are_kept() -> None:
    assert broker_url("unix://:secret@/run/v.sock?db=1&x=2") == "redis+socket://:secret@/run/v.sock?virtual_host=1&x=2"
