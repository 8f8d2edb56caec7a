"""Composition root of everything that Celery's own command starts: `celery -A tasks.app beat` and `… flower`; workers
come through `workers.boot`, which adds the services."""

from core.lifeline import follow_parent
from core.settings import load_settings
from tasks.factory import create_app

follow_parent()

app = create_app(load_settings())
