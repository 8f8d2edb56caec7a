"""Sampling: distributions, restrictions, log-probabilities, and that a row's tokens are its own affair."""

import math

import pytest
import torch

from core.errors import ModelFailure
from core.protocol import Sampling
from engine.generation.execution import Sampled
from engine.generation.sequence import PENDING, Sequence
from engine.sampling.draw import plain_tokens
from engine.sampling.sampler import is_plain, random_numbers, sample
from tests.unit.engine.sampling.sequences import sequence

PROBABILITIES = (0.5, 0.3, 0.15, 0.05)
NUM_DRAWS = 4_000


def tokens_of(sampled: list[Sampled]) -> list[int | None]:
    return [None if one.failure is not None else one.token_id for one in sampled]


def logits(num_rows: int) -> torch.Tensor:
    return torch.tensor(PROBABILITIES).log().repeat(num_rows, 1)


def shares(sampling: Sampling) -> list[float]:
    """How often each token is drawn, over as many seeds."""
    drawn = tokens_of(sample(logits(NUM_DRAWS), [sequence(sampling, seed) for seed in range(NUM_DRAWS)]))
    return [drawn.count(token) / NUM_DRAWS for token in range(4)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=0.5), tuple(p * p / 0.365 for p in PROBABILITIES)),
        (Sampling(top_k=2), (0.625, 0.375, 0, 0)),
        (Sampling(top_p=0.6), (0.625, 0.375, 0, 0)),
        (Sampling(top_p=0.49), (1, 0, 0, 0)),
        (Sampling(top_k=2, top_p=0.6), (1, 0, 0, 0)),  # 0.625 of what top_k left is enough
        (Sampling(min_p=0.4), (0.625, 0.375, 0, 0)),
        (Sampling(min_p=0.2, top_k=3, top_p=0.9), (0.5263, 0.3158, 0.1579, 0)),
        (Sampling(min_p=0.4, logit_bias={3: 100}), (0, 0, 0, 1)),
        (Sampling(temperature=0, logit_bias={1: 5}), (0, 1, 0, 0)),
        (Sampling(temperature=0), (1, 0, 0, 0)),
        (Sampling(temperature=1e-30), (1, 0, 0, 0)),
    ],
)
def test_tokens_come_as_often_as_their_parameters_say(sampling: Sampling, expected: tuple[float, ...]) -> None:
    # Three standard deviations of a share of NUM_DRAWS draws, at most
    assert shares(sampling) == pytest.approx(list(expected), abs=3 * math.sqrt(0.25 / NUM_DRAWS))
    assert [share > 0 for share in shares(sampling)] == [probability > 0 for probability in expected]


def test_top_p_is_right_where_the_vocabulary_is_larger_than_the_candidates() -> None:
    # Given a flat distribution over more tokens than are sorted first
    flat = torch.zeros(200, 5_000)
    # When half of its mass may be drawn from
    drawn = tokens_of(sample(flat, [sequence(Sampling(top_p=0.5), seed) for seed in range(200)]))
    # Then that is 2,500 tokens, not the first 1,024, and of equal ones those that come first
    assert len(set(drawn)) > 150
    assert set(drawn) <= set(range(2_500))


def test_a_row_that_is_not_finite_fails_alone() -> None:
    # Given rows of which some hold NaN or infinity
    rows = logits(5)
    rows[1, 2], rows[2, 0], rows[3] = math.nan, math.inf, -math.inf
    samplings = [Sampling(), Sampling(top_p=0.9), Sampling(), Sampling(temperature=0), Sampling(top_k=2)]
    sequences = [sequence(sampling, seed) for seed, sampling in enumerate(samplings)]
    # When they are sampled
    tokens = tokens_of(sample(rows, sequences))
    # Then these rows have no token, and the others those they have without them
    assert [token is None for token in tokens] == [False, True, True, True, False]
    assert [tokens[0], tokens[4]] == tokens_of(sample(logits(2), [sequences[0], sequences[4]]))


def test_forbidden_tokens_are_never_drawn() -> None:
    # Given logits that forbid the last token, as some models do
    rows = logits(500)
    rows[:, 3] = -math.inf
    # Then nobody draws it
    for sampling in (Sampling(), Sampling(top_p=0.99), Sampling(top_k=4)):
        assert 3 not in tokens_of(sample(rows, [sequence(sampling, seed) for seed in range(500)]))


MIXED = [
    Sampling(temperature=0),
    Sampling(),
    Sampling(top_k=7),
    Sampling(top_p=0.8, min_p=0.05),
    Sampling(min_p=0.3),
    Sampling(temperature=0, repetition_penalty=1.4),
    Sampling(temperature=0.7, frequency_penalty=0.4, logit_bias={5: -3.0}),
    Sampling(num_logprobs=2),
    Sampling(min_tokens=4, stop_token_ids=(3,)),
]


def mixed() -> list[Sequence]:
    return [sequence(one, seed, prompt=(1, 8), answer=(5, 9)) for seed, one in enumerate(MIXED)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_token_alone_and_among_rows_of_every_kind(dtype: torch.dtype) -> None:
    # Given rows with all sorts of parameters
    rows = (torch.randn(len(MIXED), 1_500, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    before = rows.clone()
    # When they are sampled together, and each alone
    together = sample(rows, mixed())
    alone = [sample(rows[row : row + 1], [one])[0] for row, one in enumerate(mixed())]
    # Then tokens and log-probabilities agree, and the logits are as the model left them
    assert tokens_of(together) == tokens_of(alone)
    assert [one.logprobs for one in together] == [one.logprobs for one in alone]
    assert torch.equal(rows, before)


def test_large_batches_are_cut_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(len(MIXED), 1_500, generator=torch.Generator().manual_seed(1))
    whole = sample(rows, mixed())
    monkeypatch.setattr("engine.sampling.sampler._CPU_CHUNK", 3_200)
    cut = sample(rows, mixed())
    assert tokens_of(cut) == tokens_of(whole)
    assert [one.logprobs for one in cut] == [one.logprobs for one in whole]


def test_plain_rows_are_those_whose_tokens_the_device_can_draw_alone() -> None:
    assert [is_plain(one) for one in mixed()] == [*[True] * 5, *[False] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_path_for_plain_rows_gives_the_tokens_of_the_sampler(dtype: torch.dtype) -> None:
    # Given rows of a temperature at most, one of which is no distribution
    temperatures = [0.0, 0.4, 1.0, 1e-9, 1.7, 0.0, 1.0] * 10
    sequences = [sequence(Sampling(temperature=one), seed) for seed, one in enumerate(temperatures)]
    rows = (torch.randn(70, 700, generator=torch.Generator().manual_seed(2)) * 3).to(dtype)
    rows[6, 6] = math.nan
    # When both ways choose
    tokens, is_finite = plain_tokens(rows, torch.tensor(temperatures), random_numbers(sequences, rows.device))
    # Then they choose the same
    plain = [token if fine else None for token, fine in zip(tokens.tolist(), is_finite.tolist(), strict=True)]
    assert plain == tokens_of(sample(rows, sequences))


def test_log_probabilities_are_of_the_models_own_distribution() -> None:
    # Given a row whose parameters leave only its least probable token
    one = sequence(Sampling(temperature=0.3, logit_bias={3: 100}, top_k=1, num_logprobs=2))
    # When it is sampled
    sampled = sample(logits(1), [one])[0]
    # Then the token's log-probability is what the model gave it, and so are those of its rivals
    assert sampled.token_id == 3
    assert sampled.logprobs is not None
    assert sampled.logprobs.chosen == pytest.approx(math.log(0.05))
    assert [token_id for token_id, _ in sampled.logprobs.top] == [0, 1]
    assert [logprob for _, logprob in sampled.logprobs.top] == pytest.approx([math.log(0.5), math.log(0.3)])


def test_rows_get_as_many_log_probabilities_as_they_ask_for() -> None:
    sequences = [sequence(Sampling(num_logprobs=number)) for number in (None, 0, 3, 20)]
    found = [one.logprobs for one in sample(logits(4), sequences)]
    assert found[0] is None
    assert [len(one.top) for one in found if one is not None] == [0, 3, 4]


def test_an_impossible_token_has_a_log_probability_that_json_can_hold() -> None:
    rows = logits(1)
    rows[0, 2] = -math.inf
    sampled = sample(rows, [sequence(Sampling(num_logprobs=4))])[0]
    assert sampled.logprobs is not None
    assert sampled.logprobs.top[-1] == (2, -9999.0)


def test_a_row_whose_parameters_leave_nothing_fails_alone() -> None:
    # Given a row that may neither end nor go on
    rows = logits(2)
    rows[0, [0, 2, 3]] = -math.inf
    # When it is sampled beside another
    failed, other = sample(rows, [sequence(Sampling(min_tokens=1)), sequence(Sampling(temperature=0))])
    # Then it has a failure of its own
    assert isinstance(failed.failure, ModelFailure)
    assert "leave no token" in failed.failure.message
    assert (other.failure, other.token_id) == (None, 0)


def test_a_failed_row_has_no_token() -> None:
    failed = sample(torch.full((1, 4), math.nan), [sequence(Sampling(num_logprobs=1))])[0]
    assert (failed.token_id, failed.logprobs) == (PENDING, None)


def test_no_rows_give_no_tokens() -> None:
    assert sample(logits(0), []) == []
