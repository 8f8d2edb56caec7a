"""A scheduler over rows whose steps are carried out by a memory that notices every lost, shared or stale cell."""

from dataclasses import dataclass, field

from core.protocol import BULK_PRIORITY, Sampling
from engine.generation.scheduler import Scheduler, Step
from engine.generation.sequence import Sequence
from engine.kv.slots import SlotPool
from tests.unit.engine.kv.row_memory import NUM_TOKENS, RowMemory

CONTEXT = 600


@dataclass
class Plan:
    """A request as the test plans it. family: those of one begin alike, for `num_shared_tokens`.

    cancel_after: steps after its arrival, or None.
    """

    num_prompt_tokens: int
    num_answer_tokens: int
    priority: int = BULK_PRIORITY
    cancel_after: int | None = None
    steps_before: int = 0
    family: int = 0
    num_shared_tokens: int = 0
    scope: str = ""

    def prompt(self, order: int) -> list[int]:
        shared = [(self.family + place) % NUM_TOKENS for place in range(self.num_shared_tokens)]
        own = [(order * (place + 3) + place // 7) % NUM_TOKENS for place in range(self.num_prompt_tokens)]
        return [*shared, *own][: self.num_prompt_tokens]


@dataclass
class World:
    pool: SlotPool
    scheduler: Scheduler
    prefill_tokens: int
    memory: RowMemory
    started: list[int] = field(default_factory=list)
    ended: dict[int, Sequence] = field(default_factory=dict)
    cancel_at: dict[int, list[Sequence]] = field(default_factory=dict)
    num_steps: int = 0

    def add(self, order: int, plan: Plan) -> Sequence:
        limit = min(plan.num_answer_tokens, CONTEXT - plan.num_prompt_tokens)
        key = (b"", str(order))
        sequence = Sequence(key, plan.prompt(order), Sampling(), plan.priority, order, 0, limit, scope=plan.scope)
        self.scheduler.add(sequence)
        if plan.cancel_after is not None:
            self.cancel_at.setdefault(self.num_steps + plan.cancel_after, []).append(sequence)
        return sequence

    def end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.ended[sequence.order] = sequence

    def step(self) -> Step:
        for sequence in self.cancel_at.pop(self.num_steps, []):
            if sequence.order not in self.ended:
                self.end(sequence)
        ran_before = set(self.scheduler.running)
        step = self.scheduler.schedule()
        self.check(step, ran_before)
        self.apply(step)
        self.num_steps += 1
        return step

    def check(self, step: Step, ran_before: set[Sequence]) -> None:
        running, waiting = self.scheduler.running, self.scheduler._waiting
        assert {s.slot for s in running} == set(range(len(running))), "rows are dense and nobody shares one"
        assert self.pool.num_taken == len(running) <= self.pool.num_slots
        assert self.pool.can_hold(running)
        assert all(piece.sequence in running for piece in step.pieces)
        assert len({piece.sequence.key for piece in step.pieces}) == len(step.pieces)
        prefill = [piece for piece in step.pieces if not piece.sequence.is_decoding]
        assert sum(piece.num_tokens for piece in prefill) == step.num_prefill_tokens <= self.prefill_tokens
        decoding = [s for s in running if s.is_decoding]
        assert [piece.sequence for piece in step.pieces[: step.num_decode]] == sorted(decoding, key=_slot)
        assert step.pieces or not (running or waiting), "whoever has work works"
        for admitted in set(running) - ran_before:
            passed = [other for other in waiting if other.rank < admitted.rank]
            assert all(map(self.pool.is_prefix_coming, passed)), "nobody overtakes but those who wait for a prefix"

    def apply(self, step: Step) -> None:
        assert step.orders is not None
        self.memory.carry_out(step.orders)
        for sequence in self.scheduler.running:
            self.memory.check(sequence)
        self.memory.compute(step)
        for piece in step.pieces:
            if piece.sequence.order not in self.started:
                self.started.append(piece.sequence.order)
            if piece.sequence.num_answer_tokens >= piece.sequence.max_answer_tokens:
                self.end(piece.sequence)

    def run(self, plans: list[Plan]) -> None:
        for order, plan in enumerate(plans):
            for _ in range(plan.steps_before):
                self.step()
            self.add(order, plan)
        most = 20 + 4 * sum(plan.num_prompt_tokens + plan.num_answer_tokens for plan in plans)
        while len(self.ended) < len(plans):
            self.step()
            assert self.num_steps < most, "everybody ends in bounded time"


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot


def world(
    num_slots: int = 4, prefill_tokens: int = 16, budget_tokens: int = 8 * CONTEXT, *, reuses_prefixes: bool = True
) -> World:
    pool = SlotPool(num_slots, budget_tokens, CONTEXT, reuses_prefixes=reuses_prefixes)
    return World(pool, Scheduler(pool, prefill_tokens), prefill_tokens, RowMemory(budget_tokens))
