"""`python -m engine.server`: one engine process. The only place that builds the engine's parts and the only one that
imports torch late: the socket answers `Hello` within a fraction of a second, while the models are still `loading`.

SIGTERM ends it: what is in flight fails as retryable `interrupted`, and the exit status is 0; a second one ends it at
once. A process that is stuck
ends itself with SIGALRM (`engine.watchdog`).
"""

import logging
import os
import queue
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from types import FrameType

from core.errors import MillraceError
from core.lifeline import follow_parent, pulse_path
from core.protocol import FIELDS, VERSION, EngineStats, Hello
from engine.embedding.kind import holds_embedder
from engine.link import Link, Patience
from engine.models.weight_files import stored_bytes
from engine.null import PREFIX, NullModel
from engine.options import EngineOptions, parse_options
from engine.registry import Loader, Registry
from engine.runtime import Runtime
from engine.service import Event, Service, Stop
from engine.telemetry.instruments import Instruments
from engine.telemetry.sensor import DeviceMonitor
from engine.telemetry.statistics import greeting
from engine.telemetry.throttle import Throttle
from engine.watchdog import Watchdog

logger = logging.getLogger("engine")

_OUTCOMES_PER_CREDIT = 2  # those of a client that keeps to its credits, and as many refusals


def main(arguments: Sequence[str] | None = None) -> int:
    follow_parent()
    options = parse_options(arguments)
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_handler(inbox))
    try:
        _serve(options, inbox)
    except Exception as error:
        message = error.message if isinstance(error, MillraceError) else "the engine ends"
        logger.critical(message, exc_info=not isinstance(error, MillraceError))
        return 1
    return 0


def _stop_handler(inbox: "queue.SimpleQueue[Event]") -> Callable[[int, FrameType | None], None]:
    is_stopping = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            os._exit(128 + number)
        is_stopping = True
        inbox.put(Stop())

    return stop


def _serve(options: EngineOptions, inbox: "queue.SimpleQueue[Event]") -> None:
    registry = Registry(options.models, _loader(options), inbox.put, time.monotonic)
    for name in options.preload:
        registry.start_loading(registry.models[name])
    hello = Hello(
        uuid.uuid4().hex,
        options.device,
        options.credits,
        registry.statuses(),
        EngineStats(),
        version=VERSION,
        understood=FIELDS,
    )
    instruments = _instruments(options)
    patience = Patience(num_outcomes=_OUTCOMES_PER_CREDIT * options.credits)
    link = Link(
        options.endpoint,
        inbox.put,
        lambda: greeting(service.hello, instruments),
        patience=patience,
        pulse=pulse_path(),
    )
    service = Service(registry, inbox, link.send, hello, instruments)
    instruments.watchdog.start()
    link.start()
    logger.info("engine %s listens on %s, device %s", hello.boot_id, options.endpoint, options.device)
    try:
        service.run()
        link.take_leave()
        service.end()
    finally:
        instruments.watchdog.rest()
        link.close()


def _instruments(options: EngineOptions) -> Instruments:
    monitor = _monitor() if options.device == "cuda" else None
    if monitor is not None:
        monitor.start()
    throttle = Throttle(options.max_temperature_celsius)
    return Instruments(watchdog=Watchdog(options.max_step_seconds), throttle=throttle, monitor=monitor)


def _monitor() -> DeviceMonitor | None:
    try:
        from engine.telemetry.nvml import NvmlSensor, visible_device
    except ImportError:
        logger.warning("nvidia-ml-py is not installed: no readings of the device, and no throttle")
        return None
    return DeviceMonitor(NvmlSensor(visible_device()))


def _loader(options: EngineOptions) -> Loader:
    def load(name: str, source: str) -> Runtime:
        if source.startswith(PREFIX):
            return NullModel.from_source(source, options.num_slots)
        from engine.models.loading import LoadOptions, load_generator  # torch; seconds

        others = [other for other in options.models.items() if other != (name, source)]
        load_options = LoadOptions(
            device=options.device,
            dtype=options.dtype,
            num_slots=options.num_slots,
            prefill_tokens=options.prefill_tokens,
            max_context_tokens=options.max_context_tokens,
            kv_bytes=options.kv_bytes,
            native=options.native,
            prefix_reuse=options.prefix_reuse,
            kv=options.kv,
            graphs=options.graphs,
            num_models=len(options.models),
            other_weight_bytes=sum(stored_bytes(other) for _, other in others),
            num_threads=options.num_threads,
        )
        if not holds_embedder(source):
            return load_generator(name, source, load_options)
        from engine.embedding.loading import load_embedder  # another second

        return load_embedder(name, source, load_options)

    return load


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # A model may be loading on its thread, deep inside torch; the interpreter's orderly end could crash on it.
    os._exit(status)
