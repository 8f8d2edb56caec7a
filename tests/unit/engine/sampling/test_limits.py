"""What is refused before a request costs anything."""

import pytest

from core.errors import ContextLengthExceeded, InvalidRequest
from core.protocol import Sampling
from engine.sampling.limits import answer_limit, check_named_tokens, check_num_answers, check_sampling, check_token_ids


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(temperature=-0.1), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(temperature=float("inf")), "temperature"),
        (Sampling(top_p=0.0), "top_p"),
        (Sampling(top_p=1.1), "top_p"),
        (Sampling(top_p=float("nan")), "top_p"),
        (Sampling(top_k=-1), "top_k"),
        (Sampling(stop=("",)), "stop"),
        (Sampling(stop=("x",) * 17), "stop"),
        (Sampling(stop_token_ids=(1,) * 65), "stop_token_ids"),
        (Sampling(min_tokens=-1), "min_tokens"),
        (Sampling(min_tokens=6, max_tokens=5), "min_tokens"),
        (Sampling(min_p=-0.1), "min_p"),
        (Sampling(min_p=1.1), "min_p"),
        (Sampling(min_p=float("nan")), "min_p"),
        (Sampling(repetition_penalty=0.0), "repetition_penalty"),
        (Sampling(repetition_penalty=float("inf")), "repetition_penalty"),
        (Sampling(presence_penalty=2.1), "presence_penalty"),
        (Sampling(presence_penalty=float("nan")), "presence_penalty"),
        (Sampling(frequency_penalty=-2.1), "frequency_penalty"),
        (Sampling(logit_bias={3: 100.5}), "logit_bias"),
        (Sampling(logit_bias={3: float("nan")}), "logit_bias"),
        (Sampling(logit_bias=dict.fromkeys(range(1025), 1.0)), "logit_bias"),
        (Sampling(num_logprobs=-1), "top_logprobs"),
        (Sampling(num_logprobs=21), "top_logprobs"),
    ],
)
def test_impossible_parameters_are_refused_by_name(sampling: Sampling, param: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{param}: expected") as caught:
        check_sampling(sampling)
    assert caught.value.param == param


def test_possible_parameters_pass() -> None:
    check_sampling(Sampling())
    check_sampling(Sampling(max_tokens=1, temperature=0, top_p=1, top_k=5, seed=-3, stop=("x",), min_tokens=1))
    check_sampling(Sampling(min_p=1, repetition_penalty=0.1, presence_penalty=-2, frequency_penalty=2))
    check_sampling(Sampling(logit_bias={0: -100, 5: 100}, num_logprobs=20, stop_token_ids=(7,)))


@pytest.mark.parametrize("num_answers", [0, -1, 129])
def test_a_number_of_answers_that_is_none_or_too_many_is_refused(num_answers: int) -> None:
    with pytest.raises(InvalidRequest, match=r"^n: expected 1 to 128") as caught:
        check_num_answers(num_answers)
    assert caught.value.param == "n"


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (Sampling(logit_bias={5: 1.0, 320: 1.0}), "logit_bias"),
        (Sampling(logit_bias={-1: 1.0}), "logit_bias"),
        (Sampling(stop_token_ids=(320,)), "stop_token_ids"),
    ],
)
def test_parameters_that_name_tokens_the_model_does_not_have_are_refused(sampling: Sampling, param: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{param}: expected 0 to 319") as caught:
        check_named_tokens(sampling, 320)
    assert caught.value.param == param


@pytest.mark.parametrize("token_ids", [[-1], [3, 320, 4]])
def test_tokens_outside_the_vocabulary_are_refused(token_ids: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="expected 0 to 319"):
        check_token_ids(token_ids, 320)


def test_a_prompt_of_no_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one token"):
        check_token_ids([], 320)


@pytest.mark.parametrize(("prompt", "max_tokens", "limit"), [(10, None, 90), (10, 5, 5), (10, 500, 90), (99, 7, 1)])
def test_the_answer_may_be_as_long_as_asked_and_as_the_context_leaves(
    prompt: int, max_tokens: int | None, limit: int
) -> None:
    assert answer_limit(prompt, max_tokens, 100) == limit


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded, match=r"100 tokens.*may have 100"):
        answer_limit(100, 1, 100)
