"""The beat table: what runs by the clock. Every entry is harmless when two beats send it, and a message that could not
be delivered in its period expires."""

from typing import Any

from core.settings import Settings
from tasks.messages import DELIVER_WEBHOOKS, RECONCILE, REMOVE_EXPIRED
from tasks.queues import CONTROL, UPKEEP

WEBHOOK_SECONDS = 10.0
RETENTION_SECONDS = 600.0


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    return {
        "reconcile": {
            "task": RECONCILE,
            "schedule": settings.reconcile_seconds,
            "options": {"queue": CONTROL, "expires": settings.reconcile_seconds},
        },
        "deliver-webhooks": {
            "task": DELIVER_WEBHOOKS,
            "schedule": WEBHOOK_SECONDS,
            "options": {"queue": UPKEEP, "expires": WEBHOOK_SECONDS},
        },
        "remove-expired": {
            "task": REMOVE_EXPIRED,
            "schedule": RETENTION_SECONDS,
            "options": {"queue": UPKEEP, "expires": RETENTION_SECONDS},
        },
    }
