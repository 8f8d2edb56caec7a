"""Makes the Celery app from settings: broker, queues, beat table. Beat imports every task module, so none may
import torch."""

from celery import Celery

from core.redis_url import broker_url
from core.settings import Settings
from tasks.base import MillraceTask
from tasks.beat import beat_schedule
from tasks.broker.transport import use_thrifty_transport
from tasks.queues import CONTROL

TASK_MODULES = (
    "tasks.heavy",
    "tasks.inference",
    "tasks.upkeep.artifacts",
    "tasks.upkeep.finalizing",
    "tasks.upkeep.intake",
    "tasks.upkeep.reconciler",
    "tasks.upkeep.retention",
    "tasks.upkeep.webhooks",
)

# Longer than any lease: a message that comes again while its chunk is leased would be a wake-up for nothing.
VISIBILITY_TIMEOUT_SECONDS = 3600
# A broker that hangs must not hold its callers; workers ask it with a timeout of a second.
SOCKET_TIMEOUT_SECONDS = 10
# Whoever sends learns at once that the broker is away: the rows are committed, and the reconciler sends again.
FAIL_QUICKLY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}
DEFAULT_BROKER_URL = "redis://127.0.0.1:6379/0"


def create_app(settings: Settings) -> Celery:
    use_thrifty_transport()
    app = Celery("millrace", task_cls=MillraceTask, include=list(TASK_MODULES), set_as_current=True)
    app.conf.update(
        broker_url=broker_url(settings.redis_url or DEFAULT_BROKER_URL),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 5,
            "socket_keepalive": True,
            "socket_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_connect_timeout": SOCKET_TIMEOUT_SECONDS,
            **FAIL_QUICKLY,
        },
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue=CONTROL,
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
        worker_consumer="tasks.broker.consumer:GatheringConsumer",
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=60.0,
        timezone="UTC",
        beat_schedule=beat_schedule(settings),
    )
    return app
