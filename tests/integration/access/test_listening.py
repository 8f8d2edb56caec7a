"""The API as a process: where it may listen, and that it speaks TLS when it has a certificate."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from api.access.binding import check_binding, check_open_address, check_tls
from cli.client import call, connect, server_of
from core.errors import ConfigurationError, Unavailable
from core.settings import Settings, settings_environment
from tests.integration.access.keys import bearer, expired_key, make_key
from tests.polling import until
from tests.running import free_ports
from tests.world import World, changed

# Of `localhost`, made for this test and known to everybody.
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIULv1w0HX/+38R/xbqeCE1P47IgBIwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNTAxMzk1MVoYDzIxMjYxMTAx
MDEzOTUxWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARD2hOFCfwPZ0GCCc2SJoSSIQZmJxvzRNE/3SwbI+N5/iMSYEsS2yTJ
b38aTwh0vx7MetpsIOKxjTGfDbGPE4eeo28wbTAdBgNVHQ4EFgQUxhCKxmdPfj8X
4UVoqQuuSP1JB6cwHwYDVR0jBBgwFoAUxhCKxmdPfj8X4UVoqQuuSP1JB6cwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgDaMwK2jUo7Lig+qsC8NBy2LpFIwD2Ejh/AWA3AUTFRYCIQCm
3yf9fKD+VK3npbfu3jlKJXZEOQHf+mDYZn48z4vmWQ==
-----END CERTIFICATE-----
"""
OTHER_CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUD7CPi1vrGPN6zPBZGZ1wWUkT/ncwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNTAzMjQwNFoYDzIxMjYxMTAx
MDMyNDA0WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAS86gSS4SJ6wvnKDsz9dxEGe3uuOTHc1uBKxeYcyKcr3pyMTE609pjE
NI9c2BGN212y0egry3GUKhSTUcaIMWD4o28wbTAdBgNVHQ4EFgQUjRcGbesc8BlT
mH+inZeMqE8z+RswHwYDVR0jBBgwFoAUjRcGbesc8BlTmH+inZeMqE8z+RswDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIhAL4jBvZN+yc6P3ZrjnBjff3mUbCXSDk5WnYUA6LSq6XnAiAt
hsy6wDKZ7BlNpJ4vzvpbElg7vfTN7vQY6wUIi+PXdg==
-----END CERTIFICATE-----
"""
KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgbNcU0iun6oOVP3Yh
ffcYrz2tKLgqzUhsor94C63mTOChRANCAARD2hOFCfwPZ0GCCc2SJoSSIQZmJxvz
RNE/3SwbI+N5/iMSYEsS2yTJb38aTwh0vx7MetpsIOKxjTGfDbGPE4ee
-----END PRIVATE KEY-----
"""


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "certificate.pem").write_text(CERTIFICATE)
    (tmp_path / "key.pem").write_text(KEY)
    return {"tls_certificate": str(tmp_path / "certificate.pem"), "tls_key": str(tmp_path / "key.pem")}


@contextmanager
def served(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """`python -m api.server`; ended with its block."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "api.server"],
        env={**os.environ, **settings_environment(settings)},
        stderr=subprocess.PIPE,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def answers(url: str, child: "subprocess.Popen[bytes]") -> bool:
    assert child.poll() is None, child.communicate()
    try:
        return httpx.get(url, verify=False).is_success
    except httpx.ConnectError:
        return False


def test_an_open_address_with_a_key_and_a_certificate_is_served(world: World, tls: dict[str, str]) -> None:
    # Given
    key = make_key(world)
    (port, _) = free_ports()
    settings = changed(world.services.settings, host="0.0.0.0", port=port, auth="auto", **tls)
    url = f"https://127.0.0.1:{port}"
    with served(settings) as child:
        until(lambda: answers(f"{url}/readyz", child))
        # When / Then
        assert httpx.get(f"{url}/v1/models", verify=False).status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=bearer(key), verify=False).status_code == 200
        assert call(server_of(changed(settings, api_key=key), None), "GET", "/v1/models")["data"]
        with connect(server_of(changed(settings, api_key=key), None)) as client:
            assert client.models.list().data
        cookie = httpx.post(f"{url}/login", data={"key": key}, verify=False).headers["set-cookie"]
        assert "; secure" in cookie.lower()


def test_the_command_line_sends_its_key_only_to_the_certificate_of_the_settings(
    world: World, tls: dict[str, str], tmp_path: Path
) -> None:
    # Given another server on the port of ours, with a certificate for the same name
    (tmp_path / "expected.pem").write_text(OTHER_CERTIFICATE)
    (port, _) = free_ports()
    settings = changed(world.services.settings, port=port, **tls)
    with served(settings) as child:
        until(lambda: answers(f"https://127.0.0.1:{port}/readyz", child))
        # When / Then
        expecting = changed(settings, tls_certificate=str(tmp_path / "expected.pem"))
        with pytest.raises(Unavailable):
            call(server_of(expecting, None), "GET", "/v1/models")


def test_an_open_address_without_a_usable_key_is_refused(world: World) -> None:
    # Given
    expired_key(world)
    settings = changed(world.services.settings, host="0.0.0.0", auth="auto")
    # When / Then
    with pytest.raises(ConfigurationError, match=r"there is no API key yet: make one with `millrace keys create NAME`"):
        check_binding(settings, world.database)
    # When
    make_key(world)
    # Then
    check_binding(settings, world.database)


def test_the_server_itself_refuses_too_whoever_starts_it(world: World) -> None:
    # Given
    (port, _) = free_ports()
    with served(changed(world.services.settings, host="0.0.0.0", port=port, auth="auto")) as child:
        # When
        _, said = child.communicate(timeout=60)
    # Then
    assert child.returncode != 0
    assert b"there is no API key yet" in said


def test_nobody_is_local_on_an_open_address() -> None:
    with pytest.raises(ConfigurationError, match="`local` is for loopback addresses"):
        check_open_address(Settings(host="0.0.0.0", auth="local"))


def test_a_certificate_that_cannot_be_used_is_a_sentence(tls: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_text("no certificate")
    check_tls(Settings(**tls))  # type: ignore[arg-type]
    for values, reason in (
        ({**tls, "tls_key": ""}, "expected both or neither"),
        ({**tls, "tls_key": "/nowhere/key.pem"}, "there is no file /nowhere/key.pem"),
        ({**tls, "tls_certificate": str(tmp_path / "other.pem")}, "expected a PEM chain"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            check_tls(Settings(**values))  # type: ignore[arg-type]
