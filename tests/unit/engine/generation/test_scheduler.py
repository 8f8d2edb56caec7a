"""Laws of the scheduler, held against a model of the KV grid that notices every lost, shared or stale row."""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.protocol import Sampling
from engine.generation.scheduler import Scheduler, Step
from engine.generation.sequence import Sequence
from engine.kv.slots import SlotPool
from tests.engine_process import ROOT

CONTEXT = 600


@dataclass
class Plan:
    """A request as the test plans it. cancel_after: steps after its arrival, or None."""

    num_prompt_tokens: int
    num_answer_tokens: int
    priority: int = 0
    cancel_after: int | None = None
    steps_before: int = 0


@dataclass
class World:
    """Scheduler and a grid in which every cell says whose token it holds."""

    pool: SlotPool
    scheduler: Scheduler
    prefill_tokens: int
    grid: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    started: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    cancel_at: dict[int, list[Sequence]] = field(default_factory=dict)
    num_steps: int = 0

    def add(self, order: int, plan: Plan) -> Sequence:
        prompt = [0] * plan.num_prompt_tokens
        limit = min(plan.num_answer_tokens, CONTEXT - plan.num_prompt_tokens)
        sequence = Sequence((b"", str(order)), prompt, Sampling(), plan.priority, order, 0, limit)
        self.scheduler.add(sequence)
        if plan.cancel_after is not None:
            self.cancel_at.setdefault(self.num_steps + plan.cancel_after, []).append(sequence)
        return sequence

    def step(self) -> Step:
        for sequence in self.cancel_at.pop(self.num_steps, []):
            if sequence.order not in self.finished:
                self.scheduler.remove(sequence)
                self.finished.append(sequence.order)
        step = self.scheduler.schedule()
        self.check(step)
        self.apply(step)
        self.num_steps += 1
        return step

    def check(self, step: Step) -> None:
        running = self.scheduler.running
        assert {s.slot for s in running} == set(range(len(running))), "rows are dense and nobody shares one"
        assert self.pool.num_taken == len(running) <= self.pool.num_slots
        assert self.pool.can_hold(step.num_rows, step.longest_tokens) or not running
        assert all(piece.sequence in running for piece in step.pieces)
        assert len({piece.sequence.key for piece in step.pieces}) == len(step.pieces)
        prefill = [piece for piece in step.pieces if not piece.sequence.is_decoding]
        assert sum(piece.num_tokens for piece in prefill) <= self.prefill_tokens
        decoding = [s for s in running if s.is_decoding]
        assert [piece.sequence for piece in step.pieces[: len(decoding)]] == sorted(decoding, key=lambda s: s.slot or 0)
        assert step.pieces or not (running or self.scheduler.num_waiting), "whoever has work works"

    def apply(self, step: Step) -> None:
        for move in step.moves:
            self.grid[move.target] = self.grid[move.source][: move.num_tokens]
        for piece in step.pieces:
            sequence = piece.sequence
            assert sequence.slot is not None
            start = sequence.num_cached_tokens
            row = self.grid.setdefault(sequence.slot, [])
            assert row[:start] == [(sequence.order, position) for position in range(start)], "its K/V are its own"
            row[start:] = [(sequence.order, start + offset) for offset in range(piece.num_tokens)]
            self.finish_piece(sequence, piece.num_tokens)

    def finish_piece(self, sequence: Sequence, num_tokens: int) -> None:
        if sequence.order not in self.started:
            self.started.append(sequence.order)
        sequence.num_cached_tokens += num_tokens
        if sequence.num_uncached_tokens == 0:
            sequence.token_ids.append(0)
            if sequence.num_answer_tokens >= sequence.max_answer_tokens:
                self.scheduler.remove(sequence)
                self.finished.append(sequence.order)

    def run(self, plans: list[Plan]) -> None:
        for order, plan in enumerate(plans):
            for _ in range(plan.steps_before):
                self.step()
            self.add(order, plan)
        most = 20 + 4 * sum(plan.num_prompt_tokens + plan.num_answer_tokens for plan in plans)
        while len(self.finished) < len(plans):
            self.step()
            assert self.num_steps < most, "everybody ends in bounded time"


def world(num_slots: int = 4, prefill_tokens: int = 16, budget_tokens: int = 4 * CONTEXT) -> World:
    pool = SlotPool(num_slots, budget_tokens, CONTEXT)
    return World(pool, Scheduler(pool, prefill_tokens), prefill_tokens)


def plans(priorities: st.SearchStrategy[int]) -> st.SearchStrategy[list[Plan]]:
    plan = st.builds(
        Plan,
        num_prompt_tokens=st.integers(1, 100) | st.integers(250, 590),
        num_answer_tokens=st.integers(1, 30),
        priority=priorities,
        cancel_after=st.none() | st.integers(0, 20),
        steps_before=st.integers(0, 3),
    )
    return st.lists(plan, min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(plans(st.integers(-1, 2)), st.integers(1, 5), st.integers(1, 64), st.integers(CONTEXT, 4 * CONTEXT))
def test_no_slot_is_lost_or_shared_and_everybody_ends(
    requests: list[Plan], num_slots: int, prefill_tokens: int, budget_tokens: int
) -> None:
    # Given any mix of requests, slots and budgets
    scene = world(num_slots, prefill_tokens, budget_tokens)
    # When all of them run, the laws of every step hold (World.check and World.apply), and then
    scene.run(requests)
    # all have ended, nothing is left over, and every slot is free again
    assert sorted(scene.finished) == list(range(len(requests)))
    assert (scene.scheduler.num_running, scene.scheduler.num_waiting, scene.pool.num_taken) == (0, 0, 0)
    assert sorted(scene.pool.allocate() for _ in range(num_slots)) == list(range(num_slots))


@settings(max_examples=100, deadline=None)
@given(plans(st.just(0)), st.integers(1, 4), st.integers(1, 64))
def test_within_one_priority_the_first_to_come_is_the_first_to_start(
    requests: list[Plan], num_slots: int, prefill_tokens: int
) -> None:
    # Given requests of one priority
    scene = world(num_slots, prefill_tokens)
    # When they run
    scene.run(requests)
    # Then they started in the order of their arrival
    assert scene.started == sorted(scene.started)


def test_higher_priority_starts_first_and_takes_a_slot_from_lower() -> None:
    # Given two slots, both taken by bulk work, and more of it waiting
    scene = world(num_slots=2, prefill_tokens=64)
    bulk = [scene.add(order, Plan(10, 50)) for order in range(3)]
    scene.step()
    # When somebody who waits for the answer comes
    online = scene.add(3, Plan(10, 2, priority=10))
    step = scene.step()
    # Then it runs in this step, in the place of the youngest bulk sequence, which keeps its tokens
    assert online in [piece.sequence for piece in step.pieces]
    assert bulk[0].slot is not None
    assert bulk[1].slot is None
    assert bulk[1].num_answer_tokens == 1
    # And after it has left, the one that gave way comes back before the one that never ran
    scene.step()
    scene.step()
    assert bulk[1].slot is not None
    assert bulk[2].slot is None


def test_a_long_prompt_is_cut_into_pieces_beside_those_who_decode() -> None:
    # Given a sequence that decodes and a prompt of four times the prefill budget
    scene = world(prefill_tokens=16)
    short = scene.add(0, Plan(4, 50))
    scene.step()
    scene.add(1, Plan(64, 5))
    # When it is prefilled
    steps = [scene.step() for _ in range(4)]
    # Then it takes a budget's worth per step, and the other one never pauses
    assert [[piece.num_tokens for piece in step.pieces] for step in steps] == [[1, 16]] * 4
    assert all(step.pieces[0].sequence is short for step in steps)


def test_nobody_takes_a_slot_before_there_is_prefill_budget_for_it() -> None:
    # Given a prompt that uses the budget of two steps, and another behind it
    scene = world(prefill_tokens=16)
    scene.add(0, Plan(30, 2))
    second = scene.add(1, Plan(4, 2))
    # When the first step runs
    scene.step()
    # Then the second request still waits, and starts with what the first leaves of the second step
    assert second.slot is None
    scene.step()
    assert second.num_answer_tokens == 0
    assert second.num_cached_tokens == 2


def test_cancelling_frees_the_slot_and_closes_the_gap() -> None:
    # Given three running sequences
    scene = world(num_slots=3, prefill_tokens=64)
    first, _, third = (scene.add(order, Plan(5, 40)) for order in range(3))
    scene.step()
    # When the first is cancelled
    scene.scheduler.remove(first)
    step = scene.step()
    # Then the last moves into its row with all that is cached
    assert [(move.source, move.target, move.num_tokens) for move in step.moves] == [(2, 0, 5)]
    assert third.slot == 0


def test_the_engine_without_its_models_starts_without_torch() -> None:
    # Given the modules that decide
    modules = "engine.server, engine.null, engine.generation.scheduler, engine.kv.slots, "
    modules += "engine.generation.sequence, engine.generation.text, engine.sampling.limits"
    # When a fresh interpreter imports them
    code = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    # Then torch is not among what was loaded
    assert completed.returncode == 0


def test_a_context_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        SlotPool(4, 100, 101)
