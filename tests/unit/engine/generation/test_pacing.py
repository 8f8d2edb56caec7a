"""Whom the prompts of a step hold up, and how much."""

import pytest

from core.protocol import ONLINE_PRIORITY
from engine.generation.scheduler import Scheduler
from engine.kv.slots import SlotPool
from tests.unit.engine.generation.scheduled_world import CONTEXT, Plan, World
from tests.unit.engine.kv.row_memory import RowMemory


def decoding_bulk(num_slots: int, *, shares_passes: bool = True) -> World:
    """Eight bulk sequences decode at 0.1 s a step, beside which a prompt token takes 0.001 s."""
    pool = SlotPool(num_slots, 32 * CONTEXT, CONTEXT)
    scene = World(pool, Scheduler(pool, 512, shares_passes=shares_passes), 512, RowMemory(32 * CONTEXT))
    for order in range(8):
        scene.add(order, Plan(20, 90, family=order))
    for _ in range(4):
        step = scene.step()
        scene.scheduler.observe(step, 0.1 * (step.num_decode > 0) + 0.001 * step.num_prefill_tokens)
    return scene


@pytest.mark.parametrize(("num_prompts", "is_held_up"), [(1, False), (2, True)])
def test_bulk_work_is_held_up_by_prompts_only_where_many_places_wait(num_prompts: int, is_held_up: bool) -> None:
    scene = decoding_bulk(num_slots=12)
    # When one long prompt comes, or more
    for order in range(num_prompts):
        scene.add(8 + order, Plan(500, 5, family=8 + order))
    step = scene.step()
    # Then one in nine places may wait for its prompt, and more may not
    assert step.num_decode == 8
    assert (step.num_prefill_tokens > 100) is is_held_up


def test_bulk_prompts_come_in_large_pieces_where_each_costs_a_pass_of_its_own() -> None:
    scene = decoding_bulk(num_slots=12, shares_passes=False)
    scene.add(8, Plan(500, 5, family=8))
    assert scene.step().num_prefill_tokens > 100


@pytest.mark.parametrize("num_slots", [12, 8])
def test_the_pace_of_bulk_work_holds_up_nobody_who_waits_for_an_answer(num_slots: int) -> None:
    # Given bulk work, with places left or in all of them
    scene = decoding_bulk(num_slots)
    # When somebody asks
    scene.add(8, Plan(400, 5, family=8, priority=ONLINE_PRIORITY))
    # Then all of the prompt is processed at once
    assert scene.step().num_prefill_tokens >= 400
