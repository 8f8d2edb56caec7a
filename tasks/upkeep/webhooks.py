"""Delivers the webhook messages that are due, a few of each endpoint at a time, so that one round takes no longer than
one answer may take. Safe to run twice, at once or again after a crash: then a message arrives twice, under one id."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from random import Random

from celery import shared_task

from core.errors import Unavailable
from core.settings import Settings
from core.webhooks import signature
from core.webhooks.retries import MAX_ATTEMPTS, delay_after
from db.webhooks import deliveries
from db.webhooks.deliveries import Delivery, DeliveryState, Trial
from tasks.messages import DELIVER_WEBHOOKS
from tasks.services import Services, current
from tasks.upkeep import outbound
from tasks.upkeep.outbound import SendingFailed

logger = logging.getLogger(__name__)

ROUND_MESSAGES = 16
ROUND_MESSAGES_PER_ENDPOINT = 4
MARGIN_SECONDS = 60.0  # beyond the timeout: name servers have time limits of their own
MAX_ERROR_CHARACTERS = 500
GONE = 410

_random = Random()  # noqa: S311, it spreads tries and guards nothing


@shared_task(name=DELIVER_WEBHOOKS)
def deliver_webhooks() -> None:
    services = current()
    if deliver_due(services) == ROUND_MESSAGES:
        services.messages.deliver_webhooks()  # behind what waits in the queue by now


def announced(services: Services) -> None:
    """After the commit of an event: the round is due now. The beat sends it too, should the broker be away."""
    try:
        services.messages.deliver_webhooks()
    except Unavailable as error:
        logger.warning("webhooks wait for the next round: %s", error, extra={"event": "webhook.delayed"})


def deliver_due(services: Services) -> int:
    """One round. Returns how many messages were tried."""
    pause = timedelta(seconds=services.settings.webhook_timeout_seconds + MARGIN_SECONDS)
    with services.database.begin() as session:
        due = deliveries.take(session, each=ROUND_MESSAGES_PER_ENDPOINT, limit=ROUND_MESSAGES, pause=pause)
    if due:
        with ThreadPoolExecutor(len(due), thread_name_prefix="webhook") as pool:
            for delivery, trial in zip(due, pool.map(lambda each: _try(services, each), due), strict=True):
                _settle(services, delivery, trial)
    return len(due)


def _try(services: Services, delivery: Delivery) -> Trial:
    try:
        status = send(services.settings, delivery)
    except SendingFailed as error:
        return _failed(delivery, None, str(error)[:MAX_ERROR_CHARACTERS])
    if 200 <= status < 300:
        return Trial(DeliveryState.DELIVERED, status, None, timedelta())
    return _failed(delivery, status, f"expected a status of 2xx, got {status}")


def send(settings: Settings, delivery: Delivery) -> int:
    """The status of the answer. Raises SendingFailed."""
    headers = signature.headers(delivery.signers, delivery.webhook_id, int(time.time()), delivery.payload)
    return outbound.post(
        delivery.url,
        {**headers, "content-type": "application/json", "user-agent": "Millrace"},
        delivery.payload.encode(),
        networks=settings.allowed_webhook_networks,
        timeout_seconds=settings.webhook_timeout_seconds,
    )


def _failed(delivery: Delivery, status: int | None, error: str) -> Trial:
    is_last = delivery.attempt >= MAX_ATTEMPTS or status == GONE
    state = DeliveryState.DEAD if is_last else DeliveryState.PENDING
    return Trial(state, status, error, delay_after(delivery.attempt, _random))


def _settle(services: Services, delivery: Delivery, trial: Trial) -> None:
    with services.database.begin() as session:
        deliveries.settle(session, delivery, trial)
    if trial.error is not None:
        consequence = "it is given up" if trial.state is DeliveryState.DEAD else "it is tried again"
        logger.warning(
            "webhook %s did not arrive (attempt %d): %s; %s",
            delivery.webhook_id,
            delivery.attempt,
            trial.error,
            consequence,
            extra={"event": "webhook.failed", "webhook": delivery.webhook_id, "attempt": delivery.attempt},
        )
