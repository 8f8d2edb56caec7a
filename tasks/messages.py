"""Sending messages: always after the commit of the rows they are about, always by a task's name."""

from collections.abc import Mapping

from celery import Celery
from kombu.exceptions import OperationalError

from core.errors import Unavailable
from tasks.queues import UPKEEP, heavy_queue, inference_queue

RUN_CHUNK = "millrace.run_chunk"
VALIDATE_BATCH = "millrace.validate_batch"
FINALIZE_JOB = "millrace.finalize_job"
RECONCILE = "millrace.reconcile"
DELIVER_WEBHOOKS = "millrace.deliver_webhooks"
RUN_HEAVY = "millrace.run_heavy"
REMOVE_ARTIFACTS = "millrace.remove_artifacts"
REMOVE_EXPIRED = "millrace.remove_expired"
TRAIN_BUILTIN_MODEL = "millrace.train_builtin_model"


class Messages:
    """Raises Unavailable when the broker is away; the rows are committed, so the reconciler sends again."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def wake_up(self, service_class: str, model: str, chunk: str) -> None:
        """`chunk`: `<job>#<index>`, a hint for people who read the message."""
        arguments = {"model": model, "chunk": chunk, "service_class": service_class}
        self._send(RUN_CHUNK, arguments, inference_queue(service_class, model))

    def run_heavy(self, node: str, job: str) -> None:
        """`job`: a hint, as in `wake_up`."""
        self._send(RUN_HEAVY, {"job": job}, heavy_queue(node))

    def remove_artifacts(self, node: str) -> None:
        """Behind the heavy jobs that wait there: their directories are that node's."""
        self._send(REMOVE_ARTIFACTS, {"node": node}, heavy_queue(node))

    def validate_batch(self, job: str) -> None:
        self._send(VALIDATE_BATCH, {"job": job}, UPKEEP)

    def finalize_job(self, job: str) -> None:
        self._send(FINALIZE_JOB, {"job": job}, UPKEEP)

    def deliver_webhooks(self) -> None:
        self._send(DELIVER_WEBHOOKS, {}, UPKEEP)

    def remove_expired(self) -> None:
        self._send(REMOVE_EXPIRED, {}, UPKEEP)

    def _send(self, task: str, arguments: Mapping[str, str], queue: str) -> None:
        try:
            self._app.send_task(task, kwargs=dict(arguments), queue=queue, retry=False)
        except OperationalError as error:
            raise Unavailable(f"the broker is away: {error}; the reconciler sends the message again") from error
