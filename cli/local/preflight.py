"""What must hold before anything is started: free ports, the packages that the models need."""

import errno
import importlib.util
import socket

from cli.options import InvalidOption
from core.access import is_loopback
from core.errors import ConfigurationError
from core.settings import Settings

ENGINE_PACKAGES = ("torch", "transformers")
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # address that is listened on -> how to reach it
INSTALL_ENGINE = "pip install 'millrace[engine]'"


def check_loopback(host: str) -> None:
    """Raises InvalidOption on an address that other machines can reach."""
    if not is_loopback(host):
        raise InvalidOption(
            f"expected a loopback address such as 127.0.0.1, got {host!r}: whoever reaches Flower may use it, because "
            "it knows no keys; put a proxy that authenticates before it"
        )


def check_ports(settings: Settings, with_flower: bool) -> None:
    """Raises ConfigurationError on a port that somebody listens on, or that we may not."""
    ports = {"--port": settings.port}
    if with_flower:
        ports["--flower-port"] = settings.flower_port
    if len(set(ports.values())) != len(ports):
        raise InvalidOption(f"the API and Flower need different ports, got {settings.port} for both")
    for option, port in ports.items():
        reason = port_problem(settings.host, port)
        if reason is not None:
            raise ConfigurationError(f"port {port} {reason}: choose another one with {option}")


def port_problem(host: str, port: int) -> str | None:
    """Why nobody can listen on the port now; None when all is well."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        return f"cannot be used on {host} ({error.strerror})"
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            return "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
    return None


def missing_engine_packages(settings: Settings) -> list[str]:
    """The null model needs none of them."""
    if all(source.startswith("null:") for source in settings.model_sources.values()):
        return []
    return [name for name in ENGINE_PACKAGES if importlib.util.find_spec(name) is None]


def check_engine_packages(settings: Settings) -> None:
    """Raises ConfigurationError naming the command that installs what is missing."""
    missing = missing_engine_packages(settings)
    if missing:
        names = " and ".join(missing)
        raise ConfigurationError(f"models need {names}, which is not installed: run {INSTALL_ENGINE}")


def api_url(settings: Settings) -> str:
    """As this machine reaches it."""
    scheme = "https" if settings.tls_certificate else "http"
    host = EVERYWHERE.get(settings.host, settings.host)
    return f"{scheme}://{http_host(host)}:{settings.port}"


def http_host(host: str) -> str:
    """As it stands in a URL."""
    return f"[{host}]" if ":" in host else host
