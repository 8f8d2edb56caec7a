"""`/metrics` for Prometheus, where a setting switches it on: what waits and runs and what the engines say is read from
PostgreSQL at the scrape, requests are counted by this process. No series names a tenant, a key or a job."""

from collections.abc import Iterable, Mapping

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from api.access.scopes import ADMIN
from api.context import Ctx
from api.contract.document import error_answer
from api.request_meter import Meters
from core.errors import NotFound
from db.native import nodes, queues
from db.native.nodes import DeviceFigures
from db.native.queues import JobCount, QueueFigures

router = APIRouter(tags=["operations"])

# Name -> what it is, of those in core.protocol.EngineStats that are told.
ENGINE_GAUGES: Mapping[str, str] = {
    "num_running": "Requests that run.",
    "num_waiting": "Requests that have not begun.",
    "num_slots": "Requests that can run at once.",
    "kv_used_fraction": "Of the memory for K/V, of the fullest model.",
    "completion_tokens_per_second": "Answer tokens, over the last seconds.",
    "process_memory_bytes": "Resident memory of the engine.",
    "step_age_seconds": "How long the step under way has lasted.",
}
ENGINE_COUNTERS: Mapping[str, str] = {
    "num_steps_total": "Steps.",
    "prompt_tokens_total": "Prompt tokens.",
    "completion_tokens_total": "Answer tokens.",
    "step_seconds_total": "Seconds in steps.",
    "num_preemptions_total": "Sequences that gave way.",
    "prefix_hit_tokens_total": "Prompt tokens that a known prefix spared.",
}


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"},
        404: error_answer(404),
    },
    dependencies=[ADMIN],
)
def metrics(context: Ctx, request: Request) -> Response:
    """404 unless `MILLRACE_METRICS=on`. Of all tenants together."""
    if context.settings.metrics != "on":
        raise NotFound("metrics are off: set MILLRACE_METRICS=on")
    meters: Meters = request.app.state.meters
    with context.database.begin() as session:
        figures = Figures(queues.figures(session), queues.job_counts(session), nodes.list_devices(session))
    registry = CollectorRegistry()
    registry.register(figures)
    return Response(generate_latest(meters.registry) + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class Figures(Collector):
    """What was read at this scrape, as Prometheus wants it."""

    def __init__(self, found: list[QueueFigures], counts: list[JobCount], devices: list[DeviceFigures]) -> None:
        self._queues = found
        self._counts = counts
        self._devices = devices

    def collect(self) -> Iterable[Metric]:
        yield from self._queue_metrics()
        jobs = GaugeMetricFamily("millrace_jobs", "Jobs that have not ended.", labels=("kind", "class", "state"))
        for count in self._counts:
            jobs.add_metric((count.kind, count.service_class, count.state), count.num_jobs)
        yield jobs
        yield from self._device_metrics()

    def _queue_metrics(self) -> Iterable[Metric]:
        labels = ("class", "model", "state")
        chunks = GaugeMetricFamily("millrace_queue_chunks", "Chunks that wait or run.", labels=labels)
        rows = GaugeMetricFamily("millrace_queue_rows", "Rows without an outcome.", labels=labels)
        oldest = GaugeMetricFamily("millrace_queue_oldest_seconds", "Age of what waits.", labels=labels[:2])
        paused = GaugeMetricFamily("millrace_queue_paused", "1 while it is paused.", labels=labels[:2])
        for queue in self._queues:
            name = (queue.service_class, queue.model)
            chunks.add_metric((*name, "waiting"), queue.num_waiting_chunks)
            chunks.add_metric((*name, "running"), queue.num_running_chunks)
            rows.add_metric((*name, "waiting"), queue.num_waiting_rows)
            rows.add_metric((*name, "running"), queue.num_running_rows)
            oldest.add_metric(name, queue.oldest_age_seconds or 0.0)
            paused.add_metric(name, float(queue.is_paused))
        return chunks, rows, oldest, paused

    def _device_metrics(self) -> Iterable[Metric]:
        labels = ("node", "device")
        silent = GaugeMetricFamily("millrace_device_silent_seconds", "Since it was last heard of.", labels=labels)
        for device in self._devices:
            silent.add_metric((device.node, device.device), device.silent_seconds)
        yield silent
        for kind, names in ((GaugeMetricFamily, ENGINE_GAUGES), (CounterMetricFamily, ENGINE_COUNTERS)):
            for name, meaning in names.items():
                metric = kind(f"millrace_engine_{name}", meaning, labels=labels)
                for device in self._devices:
                    if name in device.stats:
                        metric.add_metric((device.node, device.device), float(device.stats[name]))
                yield metric
