"""The circuit breaker of a model over the real Valkey."""

from collections.abc import Callable

import pytest
from redis import Redis

from core.job import ServiceClass
from core.protocol import Hello
from core.redis_url import client_url
from tasks.breaker.circuit import Breaker, Circuit
from tasks.inference import run_chunk
from tasks.services import ChunkRun, Close
from tests.polling import until
from tests.world import MODEL, World

SOON, LATE = 0.05, 600.0
Broken = Callable[[float], Breaker]


@pytest.fixture
def broken(redis_url: str) -> Broken:
    """A breaker whose circuit has just opened, for so many seconds."""

    def after_three_failures(open_seconds: float) -> Breaker:
        breaker = Breaker(Redis.from_url(client_url(redis_url)), max_failures=3, open_seconds=open_seconds)
        for _ in range(3):
            assert breaker.ask(MODEL).circuit is Circuit.CLOSED
            breaker.failed(MODEL)
        return breaker

    return after_three_failures


def test_it_opens_after_failures_in_a_row_and_says_for_how_long(broken: Broken) -> None:
    # When
    state = broken(LATE).ask(MODEL)
    # Then
    assert (state.circuit, state.num_failures) == (Circuit.OPEN, 3)
    assert 0 < state.retry_after_seconds <= LATE


def test_other_models_are_not_concerned(broken: Broken) -> None:
    assert broken(LATE).ask("another").circuit is Circuit.CLOSED


def test_then_one_request_is_let_through_and_its_success_closes_it(broken: Broken) -> None:
    # Given
    breaker = broken(SOON)
    until(lambda: breaker.ask(MODEL).circuit is Circuit.PROBE)
    # When / Then: the others wait for the probe
    assert breaker.ask(MODEL).circuit is Circuit.OPEN
    breaker.succeeded(MODEL)
    assert breaker.ask(MODEL).num_failures == 0


def test_a_probe_that_fails_opens_it_anew(redis_url: str, broken: Broken) -> None:
    # Given
    hasty = broken(SOON)
    until(lambda: hasty.ask(MODEL).circuit is Circuit.PROBE)
    patient = Breaker(Redis.from_url(client_url(redis_url)), max_failures=3, open_seconds=LATE)
    # When
    patient.failed(MODEL)
    # Then
    state = patient.ask(MODEL)
    assert state.circuit is Circuit.OPEN
    assert state.retry_after_seconds > 1


def test_a_probe_that_says_nothing_makes_room_for_another(broken: Broken) -> None:
    # Given
    breaker = broken(SOON)
    until(lambda: breaker.ask(MODEL).circuit is Circuit.PROBE)
    # When
    breaker.gave_up(MODEL)
    # Then
    assert breaker.ask(MODEL).circuit is Circuit.PROBE


def test_a_success_between_failures_keeps_it_closed(redis_url: str) -> None:
    # Given
    breaker = Breaker(Redis.from_url(client_url(redis_url)), max_failures=2, open_seconds=LATE)
    # When
    breaker.failed(MODEL)
    breaker.succeeded(MODEL)
    breaker.failed(MODEL)
    # Then
    assert breaker.ask(MODEL).circuit is Circuit.CLOSED


def test_a_device_that_dies_is_one_failure_however_many_report_it(redis_url: str) -> None:
    # Given
    breaker = Breaker(Redis.from_url(client_url(redis_url)), max_failures=5, open_seconds=LATE)
    # When
    for _ in range(8):
        breaker.failed(MODEL, device="node:gpu0")
    breaker.failed(MODEL, device="node:gpu1")
    # Then
    assert breaker.ask(MODEL).num_failures == 2


def test_without_redis_requests_pass_and_that_is_counted() -> None:
    # Given
    breaker = Breaker(Redis.from_url("redis://127.0.0.1:1/0"), max_failures=1, open_seconds=LATE)
    # When
    breaker.failed(MODEL)
    state = breaker.ask(MODEL)
    breaker.succeeded(MODEL)
    # Then
    assert state.circuit is Circuit.CLOSED
    assert breaker.num_failed_open == 3


class DyingEngine:
    """Runs one chunk, during which the engine dies."""

    def __init__(self) -> None:
        self._runs = [ChunkRun(1, "job", is_done=False, is_closed=False, lost_model=MODEL)]

    def run_batch(self) -> ChunkRun | None:
        return self._runs.pop() if self._runs else None

    def serve_online(self, close: Close) -> None:
        close(self._runs)

    def hello(self) -> Hello | None:
        return None

    def model_kinds(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        return


@pytest.mark.parametrize("service_class", ServiceClass)
def test_a_worker_reports_an_engine_that_died(world: World, service_class: ServiceClass) -> None:
    # Given
    services = world.with_runner(DyingEngine()).services
    # When
    run_chunk(MODEL, "job#0", service_class.value)
    # Then
    assert Breaker.of(services.settings, services.redis).ask(MODEL).num_failures == 1
