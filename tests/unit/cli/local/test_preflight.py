import importlib.util
import socket
from importlib.machinery import ModuleSpec

import pytest

from cli.local.preflight import check_engine_packages, check_loopback, check_ports
from cli.options import InvalidOption
from core.errors import ConfigurationError
from core.settings import Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_addresses_are_accepted(host: str) -> None:
    check_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_addresses_are_refused_where_no_keys_are_known(host: str) -> None:
    with pytest.raises(InvalidOption, match="expected a loopback address"):
        check_loopback(host)


def test_a_taken_port_is_named_with_its_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        port, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        check_ports(Settings(port=free, flower_port=port), with_flower=False)
        with pytest.raises(ConfigurationError, match=f"port {port} is taken: choose another one with --flower-port"):
            check_ports(Settings(port=free, flower_port=port), with_flower=True)


def test_the_two_ports_must_differ() -> None:
    with pytest.raises(InvalidOption, match="different ports"):
        check_ports(Settings(port=8800, flower_port=8800), with_flower=True)


def test_a_missing_package_is_a_sentence_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    real = importlib.util.find_spec

    def without_torch(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)

    # Then
    check_engine_packages(Settings(models="null=null:"))
    with pytest.raises(ConfigurationError, match=r"need torch, .* pip install 'millrace\[engine\]'"):
        check_engine_packages(Settings())
