"""Deadlines of requests."""

from hypothesis import given
from hypothesis import strategies as st

from engine.runtime import Key
from engine.waiting.deadlines import Deadlines

KEYS = st.sampled_from([(b"c", str(number)) for number in range(8)])
TIMES = st.integers(0, 20).map(float)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), KEYS, TIMES), st.tuples(st.just("remove"), KEYS, TIMES),
        st.tuples(st.just("take"), KEYS, TIMES),
    ),
    max_size=60,
)  # fmt: skip


@given(ACTIONS)
def test_each_is_given_once_when_it_has_passed_unless_it_was_removed(actions: list[tuple[str, Key, float]]) -> None:
    # Given any sequence of actions, beside a plain dictionary
    deadlines, plain = Deadlines(), dict[Key, float]()
    for action, key, time in actions:
        if action == "add" and key not in plain:
            deadlines.add(key, time)
            plain[key] = time
        elif action == "remove":
            deadlines.remove(key)
            plain.pop(key, None)
        elif action == "take":
            # Then what is due is what the dictionary says, the earliest first
            due = deadlines.take_due(time)
            assert sorted(due) == sorted(key for key, deadline in plain.items() if deadline <= time)
            times = [plain.pop(key) for key in due]
            assert times == sorted(times)
        # And the wait is until the first of the others
        assert deadlines.wait_seconds(5.0) == (max(0.0, min(plain.values()) - 5.0) if plain else None)
        assert len(deadlines) == len(plain)


def test_removed_ones_leave_no_trace_though_their_time_is_far() -> None:
    # Given a deadline a day away
    deadlines = Deadlines()
    deadlines.add((b"c", "stays"), 86_400.0)
    # When ten thousand requests come and go
    for number in range(10_000):
        deadlines.add((b"c", str(number)), 86_400.0)
        deadlines.remove((b"c", str(number)))
    # Then they are not remembered
    assert len(deadlines._heap) < 100
    assert deadlines.take_due(86_400.0) == [(b"c", "stays")]
