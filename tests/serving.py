"""The API behind a real socket, in a thread of the test, for the official client."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from openai import OpenAI

from api.app import create_api
from core.settings import Settings
from tests.polling import until
from tests.world import World


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The URL of the API while it runs."""
    config = uvicorn.Config(create_api(settings), host="127.0.0.1", port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def official(world: World) -> Iterator[OpenAI]:
    """OpenAI's client at the API over `world`; it tries nothing twice."""
    with (
        serving(world.services.settings) as url,
        OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client
