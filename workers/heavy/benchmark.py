"""Benchmark: a workload is run against the engine of this device, at bulk priority, and what came of it is measured
where its answers arrive: tokens per second, time to first token, time between tokens."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import quantiles

import msgspec

from core.errors import ModelFailure
from core.heavy import Workload
from core.protocol import BULK_PRIORITY, Delta, Finished, Generate, ModelStatus, Sampling
from workers.heavy.engine_access import EngineAccess, EngineSession
from workers.heavy.work import Result, Talk, Task

# Of every vocabulary: low ids are single bytes and frequent pieces.
TOKEN_IDS = range(32, 256)
SEED = 0


@dataclass(slots=True)
class _Watched:
    """A request under way; times on our clock."""

    sent_at: float
    first_at: float | None = None
    last_at: float = 0.0
    gaps: list[float] = field(default_factory=list)


class BenchmarkWork:
    def __init__(self, engine: EngineAccess) -> None:
        self._engine = engine

    def __call__(self, task: Task, talk: Talk) -> Result:
        workload = msgspec.json.decode(task.parameters, type=Workload)
        with self._engine.connect(task.job_public_id, talk) as engine:
            talk.report(0.0, f"loading {task.model}")
            check_length(workload, engine.load(task.model, talk))
            hello = engine.hello(talk)
            run = _Run(task, workload, concurrency=max(1, min(workload.concurrency, hello.credits)))
            run.drive(engine, talk)
        return Result({"device": hello.device, **run.figures()})


def check_length(workload: Workload, status: ModelStatus) -> None:
    """Raises ModelFailure for requests that do not fit into the model's context."""
    num_tokens = workload.prompt_tokens + workload.answer_tokens
    if status.context_tokens and num_tokens > status.context_tokens:
        raise ModelFailure(
            f"expected prompt and answer to fit into the {status.context_tokens} tokens of {status.name}, got "
            f"{num_tokens}: ask for shorter requests"
        )


class _Run:
    """Keeps `concurrency` requests in flight until all have been answered."""

    def __init__(self, task: Task, workload: Workload, *, concurrency: int) -> None:
        self._workload = workload
        self._concurrency = concurrency
        self._waiting = requests(task, workload)
        self._watched: dict[str, _Watched] = {}
        self._ttfts: list[float] = []
        self._gaps: list[float] = []
        self._num_prompt_tokens = self._num_answer_tokens = self._num_done = 0
        self._seconds = 0.0

    def drive(self, engine: EngineSession, talk: Talk) -> None:
        began = time.monotonic()
        self._fill(engine, talk)
        while self._watched:
            answer = engine.next_answer(talk)
            now = time.monotonic()
            if isinstance(answer, Delta):
                self._hear(self._watched[answer.id], answer, now)
            elif isinstance(answer, Finished):
                self._finish(answer, now)
                self._fill(engine, talk)
                num_requests = self._workload.num_requests
                talk.report(self._num_done / num_requests, f"{self._num_done} of {num_requests} requests")
        self._seconds = time.monotonic() - began

    def _fill(self, engine: EngineSession, talk: Talk) -> None:
        for request in islice(self._waiting, self._concurrency - len(self._watched)):
            talk.check()
            self._watched[request.id] = _Watched(time.monotonic())
            engine.submit([request])

    def _hear(self, watched: _Watched, delta: Delta, now: float) -> None:
        """A delta of several tokens counts as that many equal gaps."""
        if watched.first_at is None:
            watched.first_at = now
        elif delta.num_tokens:
            watched.gaps += [(now - watched.last_at) / delta.num_tokens] * delta.num_tokens
        watched.last_at = now

    def _finish(self, answer: Finished, now: float) -> None:
        watched = self._watched.pop(answer.id)
        self._ttfts.append((watched.first_at or now) - watched.sent_at)
        self._gaps += watched.gaps
        self._num_prompt_tokens += answer.usage.prompt_tokens
        self._num_answer_tokens += answer.usage.completion_tokens
        self._num_done += 1

    def figures(self) -> Mapping[str, object]:
        return {
            "workload": msgspec.to_builtins(self._workload),
            "concurrency": self._concurrency,
            "seconds": round(self._seconds, 3),
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_answer_tokens,
            "completion_tokens_per_second": round(self._num_answer_tokens / self._seconds, 2),
            "requests_per_second": round(self._num_done / self._seconds, 2),
            "ttft_seconds": percentiles(self._ttfts),
            "itl_seconds": percentiles(self._gaps),
        }


def requests(task: Task, workload: Workload) -> Iterator[Generate]:
    """Random prompts, the same ones every time, that no prefix of another request spares; each made when it is asked
    for, since all of them may be more than memory holds."""
    chance = random.Random(SEED)  # noqa: S311  # not for secrets
    sampling = Sampling(max_tokens=workload.answer_tokens, temperature=0.0, ignore_eos=True)
    for index in range(workload.num_requests):
        yield Generate(
            f"{task.job_public_id}-{index}",
            task.model,
            sampling,
            token_ids=chance.choices(TOKEN_IDS, k=workload.prompt_tokens),
            priority=BULK_PRIORITY,
            stream=True,
            prefix_scope=task.job_public_id,
        )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in seconds; empty where there is nothing to measure."""
    if not values:
        return {}
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {f"p{percent}": round(cuts[percent - 1], 6) for percent in (50, 95, 99)}
