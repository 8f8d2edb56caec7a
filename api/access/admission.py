"""Whether there is room for one more: limits of keys and tenants, the bound of a model's queue, its circuit breaker.
Blocking: call it in a thread, and not within a transaction, as it may need one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from api.access.rates import Rates, headers
from api.access.visit import Visit
from core.access import Identity
from core.errors import ModelUnavailable, Overloaded, RateLimited
from core.job import ServiceClass
from core.openai.completion import CompletionRequest
from core.openai.request import InferenceRequest
from db.access import load
from db.access.load import Rate
from db.connection import Database
from db.tables import OutcomeRow
from tasks.breaker.circuit import Breaker, Circuit

FRESH_SECONDS = 0.25  # what was read about a model's queue and circuit is believed for so long
UNSTATED_ANSWER_TOKENS = 256  # where a request names no `max_tokens`; corrected when the answer is known
BYTES_PER_TOKEN = 4  # of a prompt whose tokens cannot be counted here
MAX_RETRY_SECONDS = 600.0
UNKNOWN_RETRY_SECONDS = 5.0
JOB_RETRY_SECONDS = 10.0
SUCCESS, SERVER_ERROR = 200, 500
# Codes of outcomes that say something about the engine, and nothing about the request.
ENGINE_FAILURES = ("model_failure", "model_not_loaded", "engine_crashed")


@dataclass(slots=True)
class _Seen:
    """What was known of a model at `at`, and how many were admitted since. rate: where `has_asked` for it."""

    num_waiting: int
    at: float
    has_asked: bool = False
    rate: Rate | None = None


class Admission:
    """max_waiting: online requests of a model that wait at once.  `clock`: monotonic seconds."""

    def __init__(
        self,
        database: Database,
        rates: Rates,
        breaker: Breaker,
        *,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._rates = rates
        self._breaker = breaker
        self._max_waiting = max_waiting
        self._clock = clock
        self._queues: dict[str, _Seen] = {}
        self._closed_at: dict[str, float] = {}

    def close(self) -> None:
        self._rates.close()

    def admit_online(self, visit: Visit, model: str, num_tokens: int) -> None:
        """After `take_request`. `num_tokens`: prompt and answers at most. Raises RateLimited, Overloaded,
        ModelUnavailable."""
        seen = self._check_queue(model)
        self._take(visit, num_tokens, num_requests=0)
        self._ask_breaker(visit, model)
        seen.num_waiting += 1

    def check_room(self, visit: Visit, model: str) -> None:
        """Before a prompt is counted, which takes time: what need not know the count, in no transaction. `model`: one
        that is served. Raises Overloaded, ModelUnavailable."""
        self._ask_breaker(visit, model)
        self._check_queue(model)

    def give_back(self, visit: Visit) -> None:
        """Where an admitted call has made nothing."""
        self._rates.correct(visit.taken, 0)
        visit.taken.clear()

    def take_request(self, visit: Visit) -> None:
        """Before anything is done for it that takes time. Raises RateLimited."""
        self._take(visit, 0, num_requests=1)

    def _take(self, visit: Visit, num_tokens: int, *, num_requests: int) -> None:
        try:
            visit.taken += self._rates.take(visit.identity, num_tokens, num_requests=num_requests)
        except RateLimited as error:
            visit.headers.update(error.headers)
            raise
        visit.headers.update(headers(visit.taken, time.time()))

    def check_online(self, session: Session, visit: Visit) -> None:
        """Of an admitted call, before its job is made in the same transaction. Raises RateLimited."""
        try:
            self.check_jobs(session, visit.identity)
        except RateLimited:
            self.give_back(visit)
            raise

    def check_jobs(self, session: Session, identity: Identity) -> None:
        """Before a job is made in the same transaction. Raises RateLimited."""
        if not limits_jobs(identity):
            return
        of_key, of_tenant = identity.limits.concurrent_jobs, identity.tenant_limits.concurrent_jobs
        running = load.unfinished(session, tenant=identity.tenant, key_id=identity.key_id)
        for whose, num, most in (("this key", running.of_key, of_key), ("this tenant", running.of_tenant, of_tenant)):
            if most is not None and num >= most:
                raise RateLimited(
                    f"expected fewer than {most:,} jobs and online requests of {whose} at once, there are {num:,}; "
                    "wait for one to end",
                    retry_after_seconds=JOB_RETRY_SECONDS,
                )

    def _seen_lately(self, model: str) -> _Seen | None:
        seen = self._queues.get(model)
        return None if seen is None or self._clock() - seen.at >= FRESH_SECONDS else seen

    def _check_queue(self, model: str) -> _Seen:
        seen = self._seen_lately(model)
        if seen is None:
            with self._database.begin() as session:
                seen = _Seen(load.num_waiting(session, model, bound=self._max_waiting), self._clock())
            self._queues[model] = seen
        if seen.num_waiting >= self._max_waiting:
            if not seen.has_asked:
                with self._database.begin() as session:
                    seen.rate, seen.has_asked = load.rates(session).get((ServiceClass.ONLINE.value, model)), True
            raise Overloaded(
                f"{seen.num_waiting:,} requests wait for {model} already"
                + ("" if seen.rate is None else f", which answers {seen.rate.rows_per_second:.1f} a second")
                + "; try again later, or submit a batch",
                retry_after_seconds=retry_seconds(seen.num_waiting, seen.rate),
            )
        return seen

    def _ask_breaker(self, visit: Visit, model: str) -> None:
        """Once for each visit: a second question would find the probe taken, by itself."""
        if visit.model == model:
            return
        if self._clock() - self._closed_at.get(model, float("-inf")) < FRESH_SECONDS:
            visit.model = model
            return
        state = self._breaker.ask(model)
        if state.circuit is Circuit.OPEN:
            self.give_back(visit)
            raise ModelUnavailable(
                f"{model} failed {state.num_failures} times in a row; it is tried again in a moment",
                retry_after_seconds=max(1.0, state.retry_after_seconds),
            )
        visit.model = model
        visit.is_probe = state.circuit is Circuit.PROBE
        visit.is_suspect = state.num_failures > 0
        if not visit.is_suspect:
            self._closed_at[model] = self._clock()

    def finish(self, visit: Visit) -> None:
        """When the answer was sent, whatever it was."""
        model = visit.model
        assert model is not None
        outcomes = () if visit.job_id is None else self._read(visit.job_id)
        if outcomes:
            self._rates.correct(visit.taken, sum(one.prompt_tokens + one.completion_tokens for one in outcomes))
        self._report(visit, model, outcomes)

    def _read(self, job_id: int) -> Sequence[OutcomeRow]:
        with self._database.begin() as session:
            return load.outcomes(session, job_id)

    def _report(self, visit: Visit, model: str, outcomes: Sequence[OutcomeRow]) -> None:
        if any(map(is_engine_failure, outcomes)):
            self._closed_at.pop(model, None)
            self._breaker.failed(model)
        elif visit.is_suspect and any(one.status_code == SUCCESS for one in outcomes):
            self._breaker.succeeded(model)
        elif visit.is_probe:
            self._breaker.gave_up(model)


def limits_jobs(identity: Identity) -> bool:
    """Whether its jobs are counted, so that each is made in the transaction that counts."""
    return identity.limits.concurrent_jobs is not None or identity.tenant_limits.concurrent_jobs is not None


def is_engine_failure(outcome: OutcomeRow) -> bool:
    status = outcome.status_code
    return status is not None and status >= SERVER_ERROR and any(f'"{c}"' in outcome.body for c in ENGINE_FAILURES)


def retry_seconds(num_waiting: int, rate: Rate | None) -> float:
    """Until those who wait are answered, as `/api/v1/queues` tells it too, within bounds."""
    wait = load.estimated_wait_seconds(num_waiting, rate)
    return UNKNOWN_RETRY_SECONDS if wait is None else min(MAX_RETRY_SECONDS, max(1.0, wait))


def estimated_tokens(num_prompt_tokens: int | None, num_body_bytes: int, requests: Sequence[InferenceRequest]) -> int:
    """Of prompts and answers, at most; `num_prompt_tokens` is None where this machine cannot count them."""
    max_answer_tokens = sum(
        (request.sampling.max_tokens or UNSTATED_ANSWER_TOKENS) * request.num_answers
        for request in requests
        if isinstance(request, CompletionRequest)
    )
    prompt = num_body_bytes // BYTES_PER_TOKEN if num_prompt_tokens is None else num_prompt_tokens
    return prompt + max_answer_tokens
