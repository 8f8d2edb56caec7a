"""Counting tokens as a sequence grows gives what counting all of it gives."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.token_counts import TokenCounts

tokens = st.lists(st.integers(0, 300), max_size=200)


def counted(counts: TokenCounts) -> dict[int, float]:
    return dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))


@settings(deadline=None)
@given(tokens, st.lists(tokens, max_size=5), st.booleans())
def test_counts_are_those_of_the_answer_whatever_the_steps(
    prompt: list[int], pieces: list[list[int]], with_prompt: bool
) -> None:
    # Given a sequence that grows piece by piece
    counts, token_ids = TokenCounts(len(prompt), with_prompt=with_prompt), list(prompt)
    for piece in pieces:
        token_ids += piece
        counts.update(token_ids)
        counts.update(token_ids)  # as when a step is repeated
    # Then its counts are those of the whole answer, with a zero for what only the prompt holds
    expected = dict.fromkeys(prompt if with_prompt and pieces else [], 0) | Counter(token_ids[len(prompt) :])
    assert counted(counts) == expected
