"""Who is served next: priorities, fair shares between tenants, ageing, pauses."""

import itertools
from collections import Counter, deque

import pytest
from sqlalchemy import text

from core.errors import Conflict
from core.job import JobState
from db import chunks, jobs, pauses, shares
from db.chunks import Lease
from db.tables import JobRow
from tasks.upkeep import reconciler
from tasks.upkeep.intake import validate
from tests.world import MODEL, World, chat_line, success

WINDOW = 20


def rows_of(name: str, count: int, max_tokens: int) -> bytes:
    return b"".join(chat_line(f"{name}-{index}", max_tokens=max_tokens) + b"\n" for index in range(count))


def finish(world: World, lease: Lease, tokens_each: int) -> None:
    indices = range(lease.first_request, lease.first_request + lease.num_requests)
    assert world.write(lease, [success(index, completion_tokens=tokens_each) for index in indices]).is_done


def serve(world: World, sizes: dict[str, int], num_claims: int) -> list[tuple[str, int]]:
    """Runs so many chunks, each to its end: (tenant, answer tokens) of each. sizes: tokens that a row really takes."""
    served = []
    for _ in range(num_claims):
        lease = world.claim()
        assert lease is not None
        finish(world, lease, sizes[lease.tenant])
        served.append((lease.tenant, sizes[lease.tenant] * lease.num_requests))
    return served


def fractions(served: list[tuple[str, int]], tenant: str) -> list[float]:
    """The tenant's share of the answer tokens in every window of 20 chunks."""
    windows = [served[start : start + WINDOW] for start in range(len(served) - WINDOW + 1)]
    return [
        sum(tokens for name, tokens in window if name == tenant) / sum(tokens for _, tokens in window)
        for window in windows
    ]


def test_a_tenant_with_one_small_job_is_not_behind_the_million_rows_of_another(world: World) -> None:
    # Given
    world.start_job(400, tenant="large")
    world.start_job(10, tenant="small")
    # When
    order = [lease.tenant for lease in (world.claim(), world.claim()) if lease]
    # Then
    assert sorted(order) == ["large", "small"]


@pytest.mark.parametrize(
    ("small_rows", "small_jobs", "large_tokens", "small_tokens"),
    [(300, 1, 40, 40), (20, 15, 40, 40), (600, 1, 100, 40), (30, 10, 25, 100)],
)
def test_two_tenants_get_equal_shares_of_the_tokens_in_any_twenty_chunks(
    world: World, small_rows: int, small_jobs: int, large_tokens: int, small_tokens: int
) -> None:
    # Given one tenant with one large job, another with several, rows of different sizes
    world.start(rows_of("a", 600, large_tokens), tenant="large")
    for number in range(small_jobs):
        world.start(rows_of(f"b{number}", small_rows, small_tokens), tenant="small")
    # When
    served = serve(world, {"large": large_tokens, "small": small_tokens}, 56)
    # Then
    shares_of_small = fractions(served, "small")
    assert min(shares_of_small) >= 0.4
    assert max(shares_of_small) <= 0.6


def test_answers_that_end_early_are_charged_as_what_they_were(world: World) -> None:
    # Given rows that ask for as much, but those of one tenant take a quarter of it
    world.start(rows_of("a", 600, 40), tenant="long")
    world.start(rows_of("b", 600, 40), tenant="short")
    # When
    served = serve(world, {"long": 40, "short": 10}, 60)
    # Then
    shares_of_short = fractions(served, "short")
    assert min(shares_of_short) >= 0.4
    assert max(shares_of_short) <= 0.6


def test_answers_that_end_early_are_charged_as_what_they_were_however_many_chunks_run_at_once(world: World) -> None:
    # Given rows that ask for as much, but those of one tenant take a quarter of it
    world.start(rows_of("a", 600, 40), tenant="long")
    world.start(rows_of("b", 600, 40), tenant="short")
    sizes = {"long": 40, "short": 10}
    running: deque[Lease] = deque()
    served = []
    # When eight run at once, and end in the order in which they began
    for _ in range(68):
        lease = world.claim()
        assert lease is not None
        running.append(lease)
        if len(running) == 8:
            first = running.popleft()
            finish(world, first, sizes[first.tenant])
            served.append(first.tenant)
    for lease in running:
        finish(world, lease, sizes[lease.tenant])
    # Then nothing that was not taken stays charged
    with world.database.begin() as session:
        rows = session.execute(text("SELECT tenant, used_tokens FROM tenant_shares")).all()
    used: dict[str, int] = {row[0]: row[1] for row in rows}
    began = Counter([*served, *(lease.tenant for lease in running)])
    assert used == {name: began[name] * 10 * size for name, size in sizes.items()}
    assert 0.4 <= used["short"] / sum(used.values()) <= 0.6


def test_a_tenant_that_was_away_has_saved_nothing_up(world: World) -> None:
    # Given one who was served alone for long
    world.start_job(1000, tenant="busy")
    serve(world, {"busy": 2}, 30)
    # When another comes
    world.start_job(300, tenant="late")
    served = serve(world, {"busy": 2, "late": 2}, 20)
    # Then they take turns
    assert 8 <= sum(name == "late" for name, _ in served) <= 12


def test_a_higher_priority_goes_first_whatever_its_tenant_was_given(world: World) -> None:
    # Given
    world.start_job(50, tenant="a")
    world.start_job(50, tenant="b", priority=9)
    # When
    order = [lease.tenant for lease in (world.claim() for _ in range(10)) if lease]
    # Then
    assert order == ["b"] * 5 + ["a"] * 5


def test_raising_a_priority_takes_effect_on_what_has_not_started(world: World) -> None:
    # Given
    first, second = world.start_job(30), world.start_job(30)
    running = world.claim()
    assert running is not None
    # When
    with world.database.begin() as session:
        jobs.set_priority(session, second, 7)
    # Then
    order = [lease.job_id for lease in (world.claim() for _ in range(5)) if lease]
    assert order == [second.id] * 3 + [first.id] * 2
    # When the one that had started comes back
    with world.database.begin() as session:
        jobs.set_priority(session, first, 8)
        chunks.hand_back(session, running)
    lease = world.claim()
    # Then
    assert lease is not None
    assert lease.chunk_id == running.chunk_id


def set_priority(world: World, job: JobRow, priority: int) -> None:
    with world.database.begin() as session:
        jobs.set_priority(session, jobs.find(session, job.public_id, tenant=job.tenant), priority)


def charged(world: World) -> dict[int, int]:
    """Answer tokens in the books, by priority."""
    with world.database.begin() as session:
        rows = session.execute(text("SELECT priority, used_tokens FROM tenant_shares WHERE used_tokens <> 0")).all()
    return {row[0]: row[1] for row in rows}


def test_a_chunk_is_settled_where_it_was_charged_whatever_its_priority_became(world: World) -> None:
    # Given chunks of ten rows that ask for 40 tokens each, the first of which was begun before the job was raised
    job = world.start(rows_of("a", 40, 40))
    first = world.claim()
    set_priority(world, job, 9)
    second = world.claim()
    assert first is not None
    assert second is not None
    assert charged(world) == {5: 400, 9: 400}
    # When both end, one of them after another change, having taken less and more than they asked for
    finish(world, first, 30)
    set_priority(world, job, 2)
    finish(world, second, 50)
    # Then
    assert charged(world) == {5: 300, 9: 500}
    # When one comes back to another priority, and is claimed there, and ends at a third one
    third = world.claim()
    assert third is not None
    with world.database.begin() as session:
        chunks.hand_back(session, third)
    set_priority(world, job, 7)
    again = world.claim()
    assert again is not None
    assert again.chunk_id == third.chunk_id
    set_priority(world, job, 5)
    finish(world, again, 35)
    # Then it was charged once
    assert charged(world) == {2: 350, 5: 300, 9: 500}


@pytest.mark.parametrize("comes_back", ["before", "after", "by its lease", "for another try"])
def test_what_is_cancelled_is_charged_what_it_took(world: World, comes_back: str) -> None:
    # Given
    job = world.start(rows_of("a", 10, 40))
    lease = world.claim()
    assert lease is not None
    world.write(lease, [success(index, completion_tokens=20) for index in range(3)])
    set_priority(world, job, 9)
    # When
    with world.database.begin() as session:
        if comes_back == "before":
            chunks.hand_back(session, lease)
        if comes_back == "for another try":
            chunks.delay(session, lease)
        jobs.stop(session, job, JobState.CANCELLED)
        if comes_back == "by its lease":
            session.execute(text("UPDATE chunks SET lease_until = now() - interval '1 second'"))
            chunks.expire(session)
        if comes_back == "after":
            chunks.hand_back(session, lease)
    reconciler.reconcile()
    # Then
    assert charged(world) == {5: 60}


def test_what_the_release_before_claimed_is_settled_at_the_priority_that_it_has(world: World) -> None:
    # Given
    world.start(rows_of("a", 10, 40))
    lease = world.claim()
    assert lease is not None
    with world.database.begin() as session:
        session.execute(text("UPDATE chunks SET charged_priority = NULL"))
    # When
    finish(world, lease, 30)
    # Then
    assert charged(world) == {5: 300}


def test_the_priority_of_a_job_that_waits_for_validation_counts_when_it_starts(world: World) -> None:
    # Given
    world.start_job(20)
    late = world.submit(rows_of("late", 10, 4))
    with world.database.begin() as session:
        jobs.set_priority(session, late, 9)
    # When
    assert validate(world.services, late.public_id)
    lease = world.claim()
    # Then
    assert lease is not None
    assert lease.job_id == late.id


def test_the_priority_of_a_job_that_has_ended_cannot_be_changed(world: World) -> None:
    # Given
    job = world.start_job(10)
    with world.database.begin() as session:
        jobs.move(session, job.id, JobState.CANCELLING)
        jobs.move(session, job.id, JobState.CANCELLED)
    # When / Then
    with world.database.begin() as session, pytest.raises(Conflict):
        jobs.set_priority(session, job, 1)


def test_now_and_then_the_oldest_goes_first_so_that_the_lowest_priority_moves(world: World) -> None:
    # Given
    low = world.start_job(20, priority=0)
    world.start_job(100, priority=9)
    # When
    lease = world.claim(takes_oldest=True)
    # Then
    assert lease is not None
    assert lease.job_id == low.id


@pytest.mark.parametrize(("service_class", "model"), list(itertools.product(("*", "batch"), ("*", MODEL))))
def test_what_is_paused_is_neither_claimed_nor_announced_until_it_is_resumed(
    world: World, service_class: str, model: str
) -> None:
    # Given
    world.start_job(10)
    with world.database.begin() as session:
        pauses.pause(session, service_class=service_class, model=model)
        pauses.pause(session, service_class=service_class, model=model)
    # When / Then
    assert world.claim() is None
    with world.database.begin() as session:
        assert chunks.backlog(session, window=8) == []
        assert [(row.service_class, row.model) for row in pauses.list_pauses(session)] == [(service_class, model)]
    # When
    with world.database.begin() as session:
        assert pauses.resume(session, service_class=service_class, model=model) == 1
    # Then
    assert world.claim() is not None


def test_a_pause_of_another_queue_or_model_changes_nothing(world: World) -> None:
    # Given
    world.start_job(10)
    with world.database.begin() as session:
        pauses.pause(session, service_class="online")
        pauses.pause(session, model="another/model")
    # When / Then
    assert world.claim() is not None


def test_shares_of_tenants_without_work_are_forgotten_and_those_with_work_are_kept(world: World) -> None:
    # Given
    world.start_job(10, tenant="done")
    serve(world, {"done": 2}, 1)
    world.start_job(10, tenant="waits")
    with world.database.begin() as session:
        session.execute(text("UPDATE tenant_shares SET used_at = now() - interval '2 hours'"))
    # When
    reconciler.reconcile()
    # Then
    with world.database.begin() as session:
        kept = session.execute(text("SELECT tenant FROM tenant_shares WHERE tenant <> 'default'")).scalars().all()
    assert kept == ["waits"]


def test_chunks_that_the_release_before_cut_are_served(world: World) -> None:
    # Given
    world.start_job(10)
    with world.database.begin() as session:
        session.execute(text("DELETE FROM tenant_shares"))
    assert world.claim() is None
    # When
    with world.database.begin() as session:
        shares.restore(session)
    # Then
    assert world.claim() is not None
