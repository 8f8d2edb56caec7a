"""How models share the memory of a device."""

from hypothesis import given
from hypothesis import strategies as st

from engine.paged.sizing import Memory

GIB = 2**30
TOTAL = 80 * GIB


def test_a_model_alone_takes_what_is_free_less_its_workspace() -> None:
    memory = Memory(TOTAL, free=60 * GIB, workspace=10 * GIB, own_weights=19 * GIB, other_weights=0)
    assert memory.share(1) == int(50 * GIB * 0.92)


@given(st.permutations([2 * GIB, 16 * GIB, 24 * GIB]))
def test_models_get_the_same_whatever_order_they_come_in(weights: list[int]) -> None:
    # Given a device that only they use
    free, workspace = TOTAL, GIB
    shares = []
    # When they are loaded one after the other
    for own in weights:
        free -= own
        shares.append(Memory(TOTAL, free, workspace, own, sum(weights) - own).share(len(weights)))
        free -= shares[-1] + workspace
    # Then all get as much, and all fit
    assert len(set(shares)) == 1
    assert shares[0] > 10 * GIB
    assert free > 0


def test_models_that_do_not_fit_together_must_take_turns() -> None:
    memory = Memory(TOTAL, free=30 * GIB, workspace=GIB, own_weights=50 * GIB, other_weights=40 * GIB)
    assert memory.share(2) == int(29 * GIB * 0.92)


def test_nothing_is_left_where_a_step_takes_all() -> None:
    assert Memory(TOTAL, free=GIB, workspace=2 * GIB, own_weights=70 * GIB, other_weights=0).share(1) == 0
