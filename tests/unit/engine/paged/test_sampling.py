"""Sampling on the device: the tokens of the general sampler, without ever waiting for the device."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.protocol import Sampling
from engine.generation.sequence import Sequence
from engine.paged.sampling import FAILED, LatestRestrictions, sample_plain, sample_restricted
from engine.sampling.sampler import random_numbers, sample
from tests.engine_harness import random_prompt
from tests.unit.engine.paged.pages import take, whole
from tests.unit.engine.paged.test_runner import Averaging, Bench
from tests.unit.engine.sampling.sequences import sequence

TAKES_ANY_SHAPE = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::bincount"}
COMES_TO_THE_HOST = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
INDEXES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what makes the host wait for a GPU, on any device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        has_mask = name in INDEXES and any(one is not None and one.dtype == torch.bool for one in args[1])
        if name in TAKES_ANY_SHAPE | COMES_TO_THE_HOST or has_mask:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def on_device(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    temperatures = torch.tensor([one.sampling.temperature for one in sequences])
    numbers = random_numbers(sequences, logits.device)
    with NoWaiting():  # type: ignore[no-untyped-call]
        restricted = LatestRestrictions().of(sequences, logits)
        if restricted is None:
            tokens = sample_plain(logits, temperatures, numbers)
        else:
            tokens = sample_restricted(logits, temperatures, numbers, restricted)
    return tokens.tolist()


def in_general(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    return [FAILED if one.failure is not None else one.token_id for one in sample(logits, sequences)]


def spread(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * 3


def flat(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * 1e-3


def tied(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(-3, 3, shape, generator=generator).float()


def equal(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.zeros(shape)


def mostly_forbidden(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return spread(shape, generator).masked_fill_(torch.rand(shape, generator=generator) < 0.95, -torch.inf)


def halves(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return spread(shape, generator).to(torch.bfloat16)


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-9, 0.2, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 20, 64, 65, 700, 1_024, 1_500, 50_000]),
    top_p=st.sampled_from([1.0, 1.0, 1e-6, 0.25, 0.5, 0.8, 0.95, 0.999, 1 - 1e-9]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(
    wanted=st.lists(samplings, min_size=1, max_size=10),
    vocabulary=st.sampled_from([5, 320, 1_024, 1_300, 4_096, 32_000]),
    make=st.sampled_from([spread, flat, tied, equal, mostly_forbidden, halves]),
    seed=st.integers(0, 2**32),
)
@example([Sampling(top_k=1_500), Sampling(top_k=2, top_p=0.1)], 4_096, spread, 0)
@example([Sampling(top_k=20, top_p=0.95), Sampling(top_p=0.9), Sampling()], 32_000, flat, 0)
def test_every_mix_of_rows_has_the_tokens_of_the_general_sampler(
    wanted: list[Sampling], vocabulary: int, make: Callable[[tuple[int, int], torch.Generator], Tensor], seed: int
) -> None:
    # Given rows that want anything of temperature, top_k, top_p and min_p
    logits = make((len(wanted), vocabulary), torch.Generator().manual_seed(seed))
    sequences = [sequence(one, seed + row) for row, one in enumerate(wanted)]
    before = logits.clone()
    # When they are sampled on the device, where waiting is refused
    tokens = on_device(logits, sequences)
    # Then they have the tokens of the sampler, and the logits are as they were
    assert tokens == in_general(logits, sequences)
    assert torch.equal(logits, before)


@settings(max_examples=40, deadline=None)
@given(wanted=st.lists(samplings, min_size=2, max_size=8), seed=st.integers(0, 1_000))
def test_a_rows_token_does_not_depend_on_its_neighbours(wanted: list[Sampling], seed: int) -> None:
    # Given rows of every kind
    logits = spread((len(wanted), 2_000), torch.Generator().manual_seed(seed))
    sequences = [sequence(one, seed + row) for row, one in enumerate(wanted)]
    # When they are sampled together, and each alone
    together = on_device(logits, sequences)
    alone = [on_device(logits[row : row + 1], [one])[0] for row, one in enumerate(sequences)]
    # Then each has the same token
    assert alone == together


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(top_k=1), {2}),
        (Sampling(top_k=3), {2, 4, 0}),
        (Sampling(top_p=0.5), {2, 4}),
        (Sampling(top_p=0.58), {2, 4, 0}),
        (Sampling(top_k=4, top_p=0.8), {2, 4, 0}),
        (Sampling(min_p=0.6), {2, 4}),
        (Sampling(top_k=2_000), {0, 1, 2, 3, 4}),
    ],
)
def test_of_equal_tokens_the_first_are_left(sampling: Sampling, left: set[int]) -> None:
    # Given two tokens of weight 1, and three of weight a half; 2 and 4 are 57 % of all, 0 is the next
    logits = torch.tensor([0.5, 0.5, 1.0, 0.5, 1.0]).log()
    rows = logits.repeat(300, 1)
    sequences = [sequence(sampling, seed) for seed in range(300)]
    # When many are drawn
    drawn = set(on_device(rows, sequences))
    # Then they are all that is left, and nothing else
    assert drawn == left
    assert drawn == set(in_general(rows, sequences))


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.9), Sampling(top_k=7), Sampling(min_p=0.1)])
def test_a_row_that_is_not_finite_fails_alone(sampling: Sampling) -> None:
    # Given rows that hold NaN or infinity, or allow nothing
    logits = spread((5, 400), torch.Generator().manual_seed(0))
    logits[1, 2], logits[2, 0], logits[3] = math.nan, math.inf, -math.inf
    sequences = [sequence(sampling, seed) for seed in range(5)]
    # When they are sampled
    tokens = on_device(logits, sequences)
    # Then these have no token, and the others those they have without them
    assert tokens[1:4] == [FAILED] * 3
    assert [tokens[0], tokens[4]] == in_general(logits[[0, 4]], [sequences[0], sequences[4]])


def test_a_step_with_restricted_rows_never_waits_and_has_the_samplers_tokens() -> None:
    # Given a runner with a sequence of every kind, and what the sampler makes of the model's own logits
    bench = Bench(kernels=Averaging())
    oracle = Bench(kernels=Averaging())
    wanted = [
        Sampling(temperature=0),
        Sampling(),
        Sampling(top_k=20, top_p=0.95),
        Sampling(top_p=0.9),
        Sampling(min_p=0.1),
    ]
    sequences = [bench.sequence(random_prompt(3 + row), sampling=one, seed=row) for row, one in enumerate(wanted)]
    twins = [oracle.sequence(random_prompt(3 + row), sampling=one, seed=row) for row, one in enumerate(wanted)]
    # When they run, prompts first
    for _ in range(5):
        pieces = [whole(one) for one in sequences]
        with NoWaiting():  # type: ignore[no-untyped-call]
            launch = bench.runner.launch(pieces)
        for sampled in launch.result():
            take(sampled.sequence, sampled.token_id)
        with torch.inference_mode():
            logits = oracle.runner.forward([whole(one) for one in twins])
        for sampled in sample(logits, twins):
            take(sampled.sequence, sampled.token_id)
    # Then nobody waited, and the tokens are those of the sampler
    assert [one.answer_ids for one in sequences] == [one.answer_ids for one in twins]


def test_restrictions_are_made_anew_only_when_the_rows_change() -> None:
    # Given a batch that was asked for
    logits, latest = torch.zeros(2, 50), LatestRestrictions()
    batch = [sequence(Sampling(top_k=7)), sequence(Sampling(top_p=0.5))]
    first = latest.of(batch, logits)
    assert first is not None
    # When it comes again it has the same ones; another batch, or none that is restricted, has its own
    assert latest.of(list(batch), logits) is first
    other = latest.of(batch[::-1], logits)
    assert other is not None
    assert other.restrictions.top_k.tolist() == [50, 7]
    assert other.restrictions.top_p.tolist() == [0.5, 1.0]
    assert latest.of([sequence(Sampling(temperature=0, top_p=0.5)), sequence(Sampling(top_k=50))], logits) is None


def test_the_guard_against_waiting_sees_the_general_sampler_wait() -> None:
    logits, sequences = torch.zeros(2, 50), [sequence(Sampling(top_p=0.5)), sequence(Sampling(top_k=7))]
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):  # type: ignore[no-untyped-call]
        sample(logits, sequences)
    with NoWaiting(), pytest.raises(AssertionError, match="aten::index waits"):  # type: ignore[no-untyped-call]
        logits[logits > 0]
