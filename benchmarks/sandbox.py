"""A Millrace of a benchmark's own: a data directory that disappears, free ports, and its servers or its engine alone,
made and run exactly as `millrace up` makes and runs them.
"""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cli.local.postgresql import SYSTEM_PATH, locate_cluster
from cli.local.servers import embedded_servers
from cli.local.up import migrate
from core.errors import ConfigurationError, Unavailable
from core.settings import PREFIX, Settings
from workers.agent import engine_endpoint, engine_part, node_devices
from workers.devices import Device
from workers.engine_client import EngineClient
from workers.instance import Instance, directory_mode
from workers.part import Part
from workers.supervisor import Supervisor

HELLO_SECONDS = 10.0


@contextmanager
def temporary_root() -> Iterator[Path]:
    """A directory that disappears, with all that the Millrace in it has put elsewhere."""
    root = Path(tempfile.mkdtemp(prefix="millrace-benchmark-"))
    root.chmod(directory_mode())  # root's PostgreSQL runs as somebody else, who must get through
    instance = Instance.of(Settings(data_dir=str(_data_path(root))))
    try:
        yield root
    finally:
        for path in (root, instance.run_path, SYSTEM_PATH / instance.identity):
            if path.exists():
                shutil.rmtree(path)


def settings_in(root: Path, models: str) -> Settings:
    """Default settings on one device, with a data directory and ports that nobody else has. Raises ConfigurationError
    where the environment would change them."""
    check_environment(os.environ)
    port, flower_port = _free_ports()
    return Settings(
        data_dir=str(_data_path(root)),
        port=port,
        flower_port=flower_port,
        models=models,
        devices=first_device().uuid or "cpu",
    )


def check_environment(environ: Mapping[str, str]) -> None:
    """Raises ConfigurationError where it holds settings: figures are those of the defaults and of a fresh database."""
    own = sorted(name for name in environ if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}_"))
    if own:
        raise ConfigurationError(f"expected default settings, got {', '.join(own)} in the environment: unset them")


def _data_path(root: Path) -> Path:
    return root / "data"


def first_device() -> Device:
    """One device, also where there are more: an engine alone is compared with a system of one engine."""
    return node_devices(Settings())[0]


def gpu_name() -> str | None:
    device = first_device()
    return device.description if device.is_gpu else None


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


@contextmanager
def running_servers(settings: Settings) -> Iterator[Settings]:
    """The embedded servers, migrated, and the settings that name them."""
    instance = Instance.of(settings)
    instance.prepare()
    settings, parts = embedded_servers(settings, _say)
    with _running_parts(instance, parts):
        migrate(settings)
        yield settings


def embedded_database_url(settings: Settings) -> str:
    """Of the PostgreSQL that `millrace up` runs with these settings."""
    return locate_cluster(Instance.of(settings), _say).url


@contextmanager
def running_engine(settings: Settings) -> Iterator[EngineClient]:
    """The engine of the first device and a client of it; nothing else."""
    instance = Instance.of(settings)
    instance.prepare()
    device = node_devices(settings)[0]
    with _running_parts(instance, [engine_part(settings, device, ())]):
        client = EngineClient(engine_endpoint(settings, device), name="benchmark")
        client.start()
        try:
            if client.wait_ready(HELLO_SECONDS) is None:
                raise Unavailable("expected an engine with its model loaded, got none; run it by hand to see why")
            yield client
        finally:
            client.close()


@contextmanager
def _running_parts(instance: Instance, parts: Sequence[Part]) -> Iterator[None]:
    supervisor = Supervisor(instance, _say)
    try:
        supervisor.launch(parts)
        supervisor.wait_ready()
        yield
    finally:
        supervisor.stop_all()
        instance.clear()


def _say(line: str) -> None:
    print(line, file=sys.stderr)
