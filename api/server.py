"""Runs the API: `python -m api.server`. The first SIGTERM or SIGINT ends it within DRAIN_SECONDS, another at once."""

from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.access.binding import check_open_address, check_tls
from api.app import create_api
from api.draining import Drain
from core import logs
from core.lifeline import follow_parent
from core.settings import Settings, load_settings

DRAIN_SECONDS = 10


class Server(uvicorn.Server):
    """uvicorn's, which would wait for those who wait, and takes only a second SIGINT for a wish to be quick."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self._drain.begin()
        super().handle_exit(sig, frame)


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        ssl_certfile=settings.tls_certificate or None,
        ssl_keyfile=settings.tls_key or None,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def main() -> None:
    follow_parent()
    settings = load_settings()
    logs.configure(settings.log_level)
    check_tls(settings)
    check_open_address(settings)
    app = create_api(settings)
    Server(server_config(app, settings), app.state.drain).run()


if __name__ == "__main__":
    main()
