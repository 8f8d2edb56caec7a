"""A whole Millrace for tests: a data directory that disappears, ports that nobody else has, `millrace up`, and the
official client at it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import psycopg
from openai import OpenAI

from cli.local.running import running
from core.settings import Settings
from tests.servers import temporary_data_directory
from tests.world import changed
from workers.instance import Instance, find_processes

CLIENT_SECONDS = 120.0


@dataclass(frozen=True)
class Millrace:
    settings: Settings
    url: str
    client: OpenAI

    def database(self) -> "psycopg.Connection[tuple[object, ...]]":
        socket_path = Instance.of(self.settings).run_path / "postgresql"
        return psycopg.connect(f"postgresql://millrace@/millrace?host={socket_path}", autocommit=True)

    def process(self, word: str) -> psutil.Process:
        """The oldest process of this instance that has the word in its command line."""
        found = find_processes(Instance.of(self.settings).identity)
        matching = [process for process in found if any(word in part for part in process.cmdline())]
        return min(matching, key=lambda process: process.create_time())


@contextmanager
def temporary_settings(**values: object) -> Iterator[Settings]:
    """values: fields of Settings beside the data directory and the ports."""
    with temporary_data_directory() as data_path:
        port, flower_port = free_ports()
        own = Settings(data_dir=str(data_path), port=port, flower_port=flower_port)
        yield changed(own, **values)


@contextmanager
def running_millrace(*, with_flower: bool = False, **values: object) -> Iterator[Millrace]:
    """values: as of `temporary_settings`. The client tries nothing twice."""
    with (
        temporary_settings(**values) as settings,
        running(settings, with_flower) as started,
        OpenAI(base_url=f"{started.url}/v1", api_key="unused", max_retries=0, timeout=CLIENT_SECONDS) as client,
    ):
        yield Millrace(settings, started.url, client)


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]
