"""What is refused before a request costs anything."""

import pytest

from core.errors import ContextLengthExceeded, InvalidRequest
from core.protocol import Sampling
from engine.sampling.limits import answer_limit, check_sampling, check_token_ids


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
    ],
)
def test_impossible_parameters_are_refused_by_name(sampling: Sampling, param: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{param}: expected") as caught:
        check_sampling(sampling)
    assert caught.value.param == param


def test_possible_parameters_pass() -> None:
    check_sampling(Sampling(max_tokens=1, temperature=0, top_p=1, top_k=5, seed=-3, stop=("x",)))


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
