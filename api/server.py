"""Runs the API: `python -m api.server`."""

import uvicorn

from api.app import create_api
from core import logs
from core.lifeline import follow_parent
from core.settings import load_settings

DRAIN_SECONDS = 10


def main() -> None:
    follow_parent()
    settings = load_settings()
    logs.configure(settings.log_level)
    uvicorn.run(
        create_api(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


if __name__ == "__main__":
    main()
