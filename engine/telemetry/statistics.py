"""Makes `EngineStats` of what the loaded models count, and adds what holds at the moment at which somebody asks."""

import os
from collections import deque
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

import msgspec

from core.protocol import EngineStats, Hello
from engine.generation.meter import StepTotals
from engine.runtime import Gauges
from engine.telemetry.instruments import Instruments

RATE_SECONDS = 5.0
_SAMPLE_SECONDS = 0.25
_STATM = Path("/proc/self/statm")  # Linux
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Rate:
    """How fast a counter grows, over the last `RATE_SECONDS`."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def observe(self, total: int, now: float) -> float:
        """Per second. `total` never falls, but for a model that was unloaded: then the count begins anew."""
        if self._samples and total < self._samples[-1][1]:
            self._samples.clear()
        if self._samples and now - self._samples[-1][0] > RATE_SECONDS:  # nobody counted meanwhile: all was at rest
            self._samples = deque([(now - _SAMPLE_SECONDS, self._samples[-1][1])])
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, total))
        while len(self._samples) > 1 and self._samples[1][0] <= now - RATE_SECONDS:
            self._samples.popleft()
        begin, first = self._samples[0]
        return (total - first) / (now - begin) if now > begin else 0.0


class Statistics:
    def __init__(self) -> None:
        self._rate = Rate()

    def collect(self, gauges: Sequence[Gauges], num_slots: int, num_in_line: int, now: float) -> EngineStats:
        """num_in_line: requests that no model has looked at yet."""
        steps = reduce(add, (gauge.steps for gauge in gauges), StepTotals())
        completion_tokens = sum(gauge.completion_tokens_total for gauge in gauges)
        return EngineStats(
            num_running=sum(gauge.num_running for gauge in gauges),
            num_waiting=sum(gauge.num_waiting for gauge in gauges) + num_in_line,
            num_slots=num_slots,
            num_steps_total=sum(gauge.num_steps_total for gauge in gauges),
            prompt_tokens_total=sum(gauge.prompt_tokens_total for gauge in gauges),
            completion_tokens_total=completion_tokens,
            step_seconds_total=sum(gauge.step_seconds_total for gauge in gauges),
            kv_used_fraction=max((gauge.kv_used_fraction for gauge in gauges), default=0.0),
            prefill=steps.prefill,
            decode=steps.decode,
            mixed=steps.mixed,
            rows_histogram=steps.rows_histogram,
            completion_tokens_per_second=self._rate.observe(completion_tokens, now),
            num_preemptions_total=sum(gauge.num_preemptions_total for gauge in gauges),
            prefix_hit_tokens_total=sum(gauge.prefix_hit_tokens_total for gauge in gauges),
            prefix_lookup_tokens_total=sum(gauge.prefix_lookup_tokens_total for gauge in gauges),
        )


def greeting(snapshot: Hello, instruments: Instruments) -> Hello:
    """The snapshot of the main loop, which may be stuck, with what others know at this moment. From any thread."""
    stats = msgspec.structs.replace(
        snapshot.stats,
        process_memory_bytes=process_memory_bytes(),
        step_age_seconds=instruments.watchdog.age_seconds,
        is_throttled=instruments.throttle.is_throttled,
        device=instruments.reading,
    )
    return msgspec.structs.replace(snapshot, stats=stats)


def process_memory_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES if _STATM.exists() else 0
