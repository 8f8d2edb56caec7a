"""What parameters do to logits, against transformers' own processors and OpenAI's formula."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from core.errors import ModelFailure
from core.protocol import Sampling
from engine.generation.sequence import Sequence
from engine.sampling.adjust import adjust
from tests.unit.engine.sampling.sequences import END_ID, sequence

VOCABULARY = 43
tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30).map(tuple)


class Only:
    """A constraint that allows the same tokens always."""

    is_ready = True
    is_complete = False

    def check(self) -> None:
        """It is understood."""

    def __init__(self, *allowed: int) -> None:
        self._allowed = allowed

    def fill(self, mask: NDArray[np.uint8]) -> None:
        if not self._allowed:
            raise ModelFailure("a dead end")
        for token_id in self._allowed:
            mask[token_id // 8] |= 1 << token_id % 8

    def take(self, token_id: int) -> None:
        """Nothing changes."""


def logits(num_rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


def adjusted(rows: torch.Tensor, *sequences: Sequence) -> torch.Tensor:
    rows = rows.clone()
    assert adjust(rows, list(sequences)) == {}
    return rows


@settings(max_examples=50, deadline=None)
@given(tokens, tokens, st.sampled_from([0.5, 1.3, 4.0]))
def test_the_repetition_penalty_is_that_of_transformers(
    prompt: tuple[int, ...], answer: tuple[int, ...], penalty: float
) -> None:
    one = sequence(Sampling(repetition_penalty=penalty), prompt=prompt, answer=answer)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([[*prompt, *answer]]), logits())
    torch.testing.assert_close(adjusted(logits(), one), expected)


@settings(max_examples=50, deadline=None)
@given(tokens, tokens, st.sampled_from([-2.0, 0.0, 0.7]), st.sampled_from([-1.5, 0.0, 2.0]))
def test_presence_and_frequency_penalties_follow_openai_and_see_the_answer_alone(
    prompt: tuple[int, ...], answer: tuple[int, ...], presence: float, frequency: float
) -> None:
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    expected = logits()
    for token_id, count in Counter(answer).items():
        expected[0, token_id] -= count * frequency + presence
    found = adjusted(logits(), sequence(sampling, prompt=prompt, answer=answer))
    torch.testing.assert_close(found, expected)


def test_biases_are_those_of_transformers() -> None:
    biases = {3: 2.5, 0: -100.0, 42: 0.25}
    # transformers' name for it: sequences of one token
    processor = SequenceBiasLogitsProcessor([[[token_id], bias] for token_id, bias in biases.items()])
    expected = processor(torch.tensor([[1]]), logits())
    torch.testing.assert_close(adjusted(logits(), sequence(Sampling(logit_bias=biases))), expected)


@pytest.mark.parametrize("num_answer_tokens", [0, 2, 3, 4])
def test_end_tokens_are_held_off_as_transformers_does(num_answer_tokens: int) -> None:
    answer = tuple(range(5, 5 + num_answer_tokens))
    processor = MinNewTokensLengthLogitsProcessor(1, 3, [END_ID], device="cpu")
    expected = processor(torch.tensor([[1, *answer]]), logits())
    torch.testing.assert_close(adjusted(logits(), sequence(Sampling(min_tokens=3), answer=answer)), expected)


def test_stop_tokens_are_held_off_too_and_an_end_that_is_ignored_is_not() -> None:
    one = sequence(Sampling(min_tokens=2, stop_token_ids=(7, 9), ignore_eos=True))
    changed = (adjusted(logits(), one) != logits()).nonzero()[:, 1]
    assert changed.tolist() == [7, 9]


def test_biases_come_before_penalties_and_both_before_the_grammar() -> None:
    # Given a token whose logit the bias lifts above zero, which the penalty then halves
    rows = torch.full((1, VOCABULARY), -1.0)
    sampling = Sampling(logit_bias={5: 3.0}, repetition_penalty=2.0, frequency_penalty=0.5)
    one = sequence(sampling, answer=(5, 5, 6), constraint=Only(5, 8))
    # When the row is adjusted
    row = adjusted(rows, one)[0].tolist()
    # Then its logit is (-1 + 3) / 2 - 2 * 0.5, and what the grammar forbids cannot come
    assert (row[5], row[8]) == (0.0, -1.0)
    assert {value for token_id, value in enumerate(row) if token_id not in (5, 8)} == {-torch.inf}


def test_rows_do_not_disturb_each_other() -> None:
    # Given rows with different parameters and some with none
    sequences = [
        sequence(Sampling(logit_bias={2: 1.0}, repetition_penalty=1.5), prompt=(2, 3), answer=(4,)),
        sequence(Sampling()),
        sequence(Sampling(frequency_penalty=1.0), answer=(9, 9, 2)),
        sequence(Sampling(min_tokens=9), constraint=Only(END_ID, 12)),
        sequence(Sampling(min_tokens=9)),
        sequence(Sampling(presence_penalty=-1.0)),
    ]
    together = adjusted(logits(6), *sequences)
    # Then each row is as it would be alone
    for row, one in enumerate(sequences):
        torch.testing.assert_close(together[row : row + 1], adjusted(logits(6)[row : row + 1], one), rtol=0, atol=0)
    assert torch.equal(together[1], logits(6)[1])


def test_a_grammar_that_leaves_only_an_end_is_stronger_than_min_tokens() -> None:
    allowed = [
        (adjusted(logits(), sequence(Sampling(min_tokens=5), constraint=Only(*ids))) > -torch.inf).nonzero()[:, 1]
        for ids in ((END_ID,), (END_ID, 4))
    ]
    assert [tokens.tolist() for tokens in allowed] == [[END_ID], [4]]


def test_a_row_whose_grammar_allows_nothing_fails_alone() -> None:
    # Given a row at a dead end between two that go on
    sequences = [sequence(Sampling(), constraint=Only(*ids)) for ids in ((3,), (), (4,))]
    # When they are adjusted
    rows = logits(3)
    failures = adjust(rows, sequences)
    # Then it has a failure, and the others their masks
    assert {row: error.message for row, error in failures.items()} == {1: "a dead end"}
    assert [(rows[row] > -torch.inf).nonzero()[:, 0].tolist() for row in (0, 2)] == [[3], [4]]
