"""Who has controls at all, and when they act."""

import pytest

from core.protocol import Sampling
from engine.sampling.controls import make_controls
from tests.unit.engine.sampling.sequences import END_ID, sequence


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0, top_p=0.5, top_k=3, min_p=0.1, stop=("x",), stop_token_ids=(3,), num_logprobs=2),
    ],
)
def test_most_requests_have_none(sampling: Sampling) -> None:
    assert make_controls(sampling, {END_ID}, 5) is None


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(logit_bias={2: 1.0}),
        Sampling(repetition_penalty=0.9),
        Sampling(presence_penalty=0.1),
        Sampling(frequency_penalty=-0.1),
    ],
)
def test_biases_and_penalties_act_on_every_token(sampling: Sampling) -> None:
    controls = make_controls(sampling, {END_ID}, 5)
    assert controls is not None
    assert controls.act(0)
    assert controls.act(1_000)


def test_min_tokens_act_until_there_are_as_many() -> None:
    controls = make_controls(Sampling(min_tokens=3, stop_token_ids=(9,)), {END_ID}, 5)
    assert controls is not None
    assert [controls.act(number) for number in range(5)] == [True, True, True, False, False]
    assert [controls.held(number).tolist() for number in (2, 3)] == [[END_ID, 9], []]


def test_penalties_of_the_answer_alone_do_not_see_the_prompt() -> None:
    for sampling, seen in ((Sampling(presence_penalty=1.0), [7]), (Sampling(repetition_penalty=2.0), [4, 5, 7])):
        one = sequence(sampling, prompt=(4, 5, 4), answer=(7, 7))
        assert one.controls is not None
        assert one.controls.counts is not None
        one.controls.counts.update(one.token_ids)
        assert one.controls.counts.ids.tolist() == seen
