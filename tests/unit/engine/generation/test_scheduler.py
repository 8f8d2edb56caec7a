"""Laws of the scheduler over rows, held against a memory that notices every lost, shared or stale cell."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.protocol import ONLINE_PRIORITY, Sampling
from engine.generation.sequence import PENDING, Sequence
from engine.kv.slots import SMALLEST_WIDTH, SlotPool
from tests.engine_process import ROOT
from tests.unit.engine.generation.scheduled_world import CONTEXT, Plan, world
from tests.unit.engine.kv.row_memory import answer


def plans(
    priorities: st.SearchStrategy[int], *, families: int = 2, most_shared: int = 580
) -> st.SearchStrategy[list[Plan]]:
    plan = st.builds(
        Plan,
        num_prompt_tokens=st.integers(1, 100) | st.integers(250, 590),
        num_answer_tokens=st.integers(1, 30),
        priority=priorities,
        cancel_after=st.none() | st.integers(0, 20),
        steps_before=st.integers(0, 3),
        family=st.integers(0, families - 1),
        num_shared_tokens=st.integers(0, most_shared),
        scope=st.sampled_from(["", "", "another tenant"]),
    )
    return st.lists(plan, min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(plans(st.integers(-1, 2)), st.integers(1, 5), st.integers(1, 64), st.integers(CONTEXT, 8 * CONTEXT))
def test_no_row_or_block_is_lost_or_shared_wrongly_and_everybody_gets_its_own_answer(
    requests: list[Plan], num_slots: int, prefill_tokens: int, budget_tokens: int
) -> None:
    # Given any mix of requests, many of which begin alike, and any slots and budgets
    scene = world(num_slots, prefill_tokens, budget_tokens)
    # When all of them run, the laws of every step hold (World.check, RowMemory), and then
    scene.run(requests)
    # all have ended, with the answer that each has alone, as far as it came
    assert set(scene.ended) == set(range(len(requests)))
    for order, sequence in scene.ended.items():
        assert sequence.answer_ids == answer(sequence.scope, requests[order].prompt(order), sequence.num_answer_tokens)
        assert requests[order].cancel_after is not None or sequence.num_answer_tokens == sequence.max_answer_tokens
    # nothing is left over, and every slot is free again
    assert (scene.scheduler.num_running, scene.scheduler.num_waiting, scene.pool.num_taken) == (0, 0, 0)
    assert scene.pool.num_stored_tokens <= budget_tokens
    for order in range(num_slots):
        scene.add(100 + order, Plan(1, 5, scope=str(order)))
    assert len(scene.step().pieces) == min(num_slots, prefill_tokens, budget_tokens // SMALLEST_WIDTH)


@settings(max_examples=100, deadline=None)
@given(plans(st.just(0), most_shared=0), st.integers(1, 4), st.integers(1, 64))
def test_within_one_priority_the_first_to_come_is_the_first_to_start(
    requests: list[Plan], num_slots: int, prefill_tokens: int
) -> None:
    # Given requests of one priority, which share no beginning
    scene = world(num_slots, prefill_tokens, reuses_prefixes=False)
    # When they run
    scene.run(requests)
    # Then they started in the order of their arrival
    assert scene.started == sorted(scene.started)


def test_an_online_request_starts_at_once_and_takes_a_slot_from_bulk() -> None:
    # Given two slots, both taken by bulk work, and more of it waiting
    scene = world(num_slots=2, prefill_tokens=64)
    bulk = [scene.add(order, Plan(40, 50)) for order in range(3)]
    scene.step()
    scene.step()
    # When somebody who waits for the answer comes
    online = scene.add(3, Plan(10, 2, priority=ONLINE_PRIORITY))
    step = scene.step()
    # Then it runs in this step, in the place of the youngest bulk sequence, which keeps its tokens
    assert online in [piece.sequence for piece in step.pieces]
    assert bulk[0].slot is not None
    assert bulk[1].slot is None
    assert bulk[1].num_answer_tokens == 1
    assert scene.scheduler.num_preemptions_total == 1
    # And after it has left, the one that gave way comes back before the one that never ran, with the K/V it left
    scene.step()
    scene.step()
    assert bulk[1].slot is not None
    assert bulk[1].num_cached_tokens == 41
    assert bulk[1].num_reused_tokens == 0
    assert bulk[2].slot is None


def test_an_online_prompt_goes_before_what_is_left_of_bulk_prompts() -> None:
    # Given a bulk prompt that is being processed
    scene = world(prefill_tokens=16)
    bulk = scene.add(0, Plan(100, 2))
    scene.step()
    # When an online prompt comes
    online = scene.add(1, Plan(24, 2, priority=ONLINE_PRIORITY))
    steps = [scene.step(), scene.step()]
    # Then the whole budget is its own, and bulk gets what it leaves
    assert [[(piece.sequence, piece.num_tokens) for piece in step.pieces] for step in steps] == [
        [(online, 16)],
        [(online, 8), (bulk, 8)],
    ]


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


def test_the_measured_length_of_steps_bounds_the_pieces_beside_an_online_answer() -> None:
    # Given an online sequence that decodes at 0.1 s a step, beside which a prompt token takes 0.001 s
    scene = world(prefill_tokens=512)
    scene.add(0, Plan(300, 50, priority=ONLINE_PRIORITY))
    for _ in range(3):
        step = scene.step()
        scene.scheduler.observe(step, 0.1 * step.num_decode + 0.001 * step.num_prefill_tokens)
    # When a long prompt comes
    scene.add(1, Plan(500, 5))
    step = scene.step()
    # Then a step of decoding and prompts is less than twice as long as one that only decodes
    assert 60 <= step.num_prefill_tokens < 100


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
    assert step.orders is not None
    assert [(move.source, move.target, move.num_tokens) for move in step.orders.moves] == [(2, 0, 5)]
    assert third.slot == 0


def test_a_beginning_that_is_being_computed_is_waited_for_and_others_pass_meanwhile() -> None:
    # Given a prompt of two steps, another that begins with its first 96 tokens, and a third of its own
    scene = world(prefill_tokens=64)
    leader = scene.add(0, Plan(120, 5, num_shared_tokens=110))
    follower = scene.add(1, Plan(110, 5, num_shared_tokens=100))
    stranger = scene.add(2, Plan(8, 5, family=1, num_shared_tokens=8))
    # When they run
    scene.step()
    assert [s.num_cached_tokens for s in (leader, follower, stranger)] == [64, 0, 0]
    scene.step()
    # Then the follower waits until the leader has it, the stranger does not
    assert [s.num_cached_tokens for s in (leader, follower, stranger)] == [120, 0, 8]
    step = scene.step()
    # And it computes what only it has
    assert follower.num_reused_tokens == 96
    assert [(piece.sequence, piece.num_tokens) for piece in step.pieces[step.num_decode :]] == [(follower, 14)]
    assert (scene.pool.num_prefix_hit_tokens_total, scene.pool.num_prefix_lookup_tokens_total) == (96, 238)


def test_an_online_request_does_not_wait_for_a_beginning_that_bulk_computes() -> None:
    scene = world(prefill_tokens=16)
    scene.add(0, Plan(200, 5, num_shared_tokens=150))
    scene.step()
    # When an online request begins alike
    online = scene.add(1, Plan(40, 5, priority=ONLINE_PRIORITY, num_shared_tokens=40))
    scene.step()
    # Then it computes that by itself
    assert online.num_cached_tokens == 16


def test_whoever_waits_goes_on_where_the_one_it_waits_for_leaves() -> None:
    # Given a follower that waits for its beginning
    scene = world(prefill_tokens=32)
    leader = scene.add(0, Plan(200, 5, num_shared_tokens=150))
    follower = scene.add(1, Plan(150, 5, num_shared_tokens=150))
    scene.step()
    scene.step()
    assert follower.slot is None
    # When the leader is cancelled
    scene.end(leader)
    scene.step()
    # Then it takes over what there is and computes the rest
    assert follower.num_reused_tokens == 64
    assert follower.num_cached_tokens == 96


def test_the_next_turn_of_a_conversation_pays_for_what_is_new_alone() -> None:
    # Given a turn that was answered
    scene = world(prefill_tokens=64)
    first = scene.add(0, Plan(50, 40))
    while 0 not in scene.ended:
        scene.step()
    # When the next one contains it
    second = Sequence((b"", "1"), [*first.token_ids, *range(4), *range(4)], Sampling(), 0, 1, 0, 5)
    scene.scheduler.add(second)
    scene.step()
    # Then whole blocks of prompt and answer are there, the last answer token's, never computed, apart
    assert second.num_reused_tokens == 64
    assert second.num_uncached_tokens == 1


def test_whoever_has_its_last_token_and_waits_for_it_to_be_read_computes_nothing_more() -> None:
    # Given a sequence whose last token is still on the device
    scene = world()
    last, other = scene.add(0, Plan(4, 2)), scene.add(1, Plan(4, 9))
    scene.step()
    step = scene.scheduler.schedule()
    assert {piece.sequence for piece in step.pieces} == {last, other}
    for piece in step.pieces:
        piece.sequence.num_cached_tokens += 1
        piece.sequence.token_ids.append(PENDING)
    # Then the next step leaves it out
    assert [piece.sequence for piece in scene.scheduler.schedule().pieces] == [other]


def test_kv_that_may_hold_a_nan_are_taken_over_by_nobody() -> None:
    # Given a sequence that failed
    scene = world(prefill_tokens=64)
    bad = scene.add(0, Plan(64, 5, num_shared_tokens=64))
    scene.step()
    bad.is_spoiled = True
    scene.end(bad)
    # When another begins alike
    other = scene.add(1, Plan(70, 5, num_shared_tokens=64))
    scene.step()
    # Then it computes everything
    assert other.num_reused_tokens == 0
    assert other.num_cached_tokens == 64


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("engine.server, engine.null", ("torch", "transformers", "numpy")),
        ("engine.generation.scheduler, engine.generation.answers, engine.kv.slots", ("torch", "transformers")),
    ],
)
def test_the_engine_without_its_models_starts_without_torch(modules: str, heavy: tuple[str, ...]) -> None:
    # When a fresh interpreter imports the modules that decide
    code = f"import sys, {modules}; sys.exit(any(name in sys.modules for name in {heavy}))"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    # Then torch is not among what was loaded
    assert completed.returncode == 0


def test_a_context_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        SlotPool(4, 100, 101)
