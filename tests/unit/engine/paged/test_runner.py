from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.errors import ModelFailure
from core.protocol import Sampling
from engine.generation.scheduler import Piece
from engine.generation.sequence import PENDING, Sequence
from engine.paged import attention
from engine.paged.attention import Call
from engine.paged.batch import DecodeBatch
from engine.paged.reference import ReferenceKernels
from engine.paged.runner import Limits, PagedRunner
from engine.paged.sizing import dry_run
from engine.paged.storage import PagedStorage
from engine.sampling.sampler import sample
from tests.engine_harness import own_answer, random_prompt
from tests.engine_models import tiny_model
from tests.unit.engine.paged.pages import GREEDY, sequence, take, whole

NUM_ROWS = 11
NUM_PAGES = 12


class Bench:
    """A runner over a tiny model, and the model alone."""

    def __init__(self, kind: str = "llama", kernels: ReferenceKernels | None = None) -> None:
        attention.register()
        self.reference = tiny_model(kind)
        self.model = tiny_model(kind)
        self.model.set_attn_implementation(attention.ATTENTION_NAME)
        self.storage = PagedStorage(NUM_PAGES, torch.device("cpu"), page_size=16)
        self.runner = PagedRunner(self.model, self.storage, kernels or ReferenceKernels(), Limits(NUM_ROWS, 64, 1))
        self.num_used_pages = 0

    def sequence(self, prompt: list[int], **options: Any) -> Sequence:
        """With pages for 16 tokens more than the prompt."""
        first = self.num_used_pages
        self.num_used_pages += -(-len(prompt) // 16) + 1
        return sequence(prompt, list(range(first, self.num_used_pages)), **options)

    def step(self, *sequences: Sequence) -> None:
        """All that is left of each, and a token."""
        for sampled in self.runner.launch([whole(one) for one in sequences]).result():
            assert sampled.failure is None
            take(sampled.sequence, sampled.token_id)


def test_what_decodes_is_padded_without_being_disturbed() -> None:
    # Given three sequences, which make a batch of four
    bench = Bench()
    prompts = [random_prompt(length) for length in (5, 9, 20)]
    sequences = [bench.sequence(prompt) for prompt in prompts]
    # When they decode, joined by prompts step by step
    for step in range(6):
        bench.step(*sequences[: step + 1])
    # Then
    for number, (one, prompt) in enumerate(zip(sequences, prompts, strict=True)):
        assert one.answer_ids == own_answer(bench.reference, prompt, 6 - number)


def test_a_pending_token_is_taken_from_the_device() -> None:
    # Given a sequence whose prompt has been launched
    bench = Bench()
    prompt = random_prompt(7)
    one = bench.sequence(prompt)
    launches = [bench.runner.launch([whole(one)])]
    # When four more steps are launched before any token is read
    for _ in range(4):
        take(one, PENDING)
        launches.append(bench.runner.launch([whole(one)]))
    tokens = [launch.result()[0].token_id for launch in launches]
    # Then
    assert tokens == own_answer(bench.reference, prompt, 5)


def test_a_pending_token_at_the_end_of_a_longer_piece_is_taken_from_the_device_too() -> None:
    # Given a sequence that must be prefilled again with its newest token still on the device
    bench = Bench()
    prompt = random_prompt(7)
    one = bench.sequence(prompt)
    bench.runner.launch([whole(one)])
    take(one, PENDING)
    one.num_cached_tokens = 0
    # When
    sampled = bench.runner.launch([whole(one)]).result()
    # Then
    assert sampled[0].token_id == own_answer(bench.reference, prompt, 2)[1]


def test_a_prompt_in_pieces_of_which_one_is_a_single_token_gives_the_same_answer() -> None:
    # Given
    bench = Bench()
    prompt = random_prompt(9)
    one = bench.sequence(prompt)
    # When
    for num_tokens in (1, 5, 1):
        assert bench.runner.launch([Piece(one, num_tokens)]).result() == []
        one.num_cached_tokens += num_tokens
    bench.step(one)
    # Then
    assert one.answer_ids == own_answer(bench.reference, prompt, 1)


class Place:
    """A mark that notes that somebody waited for it."""

    is_reached = False

    def synchronize(self) -> None:
        self.is_reached = True


@pytest.mark.parametrize("num_tokens", [5, 9])
def test_every_launch_is_waited_for_whether_it_samples_or_not(num_tokens: int) -> None:
    # Given a runner whose launches are marked
    bench = Bench()
    places: list[Place] = []

    def set_mark(_: torch.device) -> Place:
        places.append(Place())
        return places[-1]

    runner = PagedRunner(bench.model, bench.storage, ReferenceKernels(), Limits(NUM_ROWS, 64, 1), set_mark)
    one = bench.sequence(random_prompt(9))
    # When a prompt of nine tokens is prefilled, in part or as a whole
    launch = runner.launch([Piece(one, num_tokens)])
    assert [place.is_reached for place in places] == [False]
    assert len(launch.result()) == (num_tokens == 9)
    # Then
    assert places[0].is_reached


@pytest.mark.parametrize(("least_rows", "padded"), [(1, 1), (2, 2), (3, 4), (NUM_ROWS, NUM_ROWS)])
def test_the_proof_goes_through_every_size_it_asks_for(least_rows: int, padded: int) -> None:
    # Given a model that notes how many tokens it is given
    bench = Bench()
    seen: list[int] = []
    bench.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    one = bench.sequence(prompt := random_prompt(5))
    bench.step(one)
    # When it decodes
    logits = bench.runner.forward([whole(one)], least_rows)
    # Then it is padded, to no harm
    assert seen == [5, padded]
    assert logits.argmax(dim=-1).tolist() == own_answer(bench.reference, prompt, 2)[1:]


def test_a_row_that_is_not_finite_fails_alone_and_spoils_no_later_step() -> None:
    # Given a model that knows no number for one token
    bench = Bench()
    spoiled = max(random_prompt(5))
    bench.model.get_input_embeddings().weight.data[spoiled] = float("nan")
    prompt = [token for token in random_prompt(9) if token != spoiled]
    bad, good = bench.sequence([spoiled, 4]), bench.sequence(prompt)
    # When both are prefilled, and the bad one's next step was launched before its failure was read
    failed, fine = bench.runner.launch([whole(bad), whole(good)]).result()
    take(bad, PENDING)
    take(good, fine.token_id)
    _, still_fine = bench.runner.launch([whole(bad), whole(good)]).result()
    # Then
    assert isinstance(failed.failure, ModelFailure)
    assert [fine.token_id, still_fine.token_id] == own_answer(bench.reference, prompt, 2)
    # And a sequence that gets the spoiled pages later never sees what they held
    other = sequence(prompt, bad.pages)
    bench.step(other)
    assert other.answer_ids == [fine.token_id]


@pytest.mark.parametrize(
    "neighbour",
    [
        pytest.param(GREEDY, id="greedy"),
        pytest.param(Sampling(temperature=0.7), id="drawn on the device"),
        pytest.param(Sampling(temperature=0.7, top_k=5, num_logprobs=2), id="drawn by the general sampler"),
    ],
)
def test_the_same_seed_gives_the_same_tokens_whatever_its_neighbour_wants(neighbour: Sampling) -> None:
    # Given what the sampler makes of the model's own logits
    bench = Bench()
    wanted = Sampling(temperature=0.9)
    prompt = random_prompt(8)
    oracle = sequence(prompt, [0], sampling=wanted, seed=123)
    with torch.inference_mode():
        for _ in range(8):
            logits = bench.reference(input_ids=torch.tensor([oracle.token_ids])).logits[:, -1]
            oracle.token_ids.append(sample(logits, [oracle])[0].token_id)
    # When
    one = bench.sequence(prompt, sampling=wanted, seed=123)
    other = bench.sequence(random_prompt(3), sampling=neighbour, seed=5)
    for _ in range(8):
        bench.step(one, other)
    # Then
    assert one.answer_ids == oracle.answer_ids
    assert len(set(one.answer_ids)) > 4


def test_what_the_general_sampler_finds_out_comes_back_with_the_token() -> None:
    bench = Bench()
    one = bench.sequence(random_prompt(4), sampling=Sampling(temperature=0, num_logprobs=3))
    sampled = bench.runner.launch([whole(one)]).result()[0]
    assert sampled.logprobs is not None


class Stumbling(ReferenceKernels):
    """Attention that fails on prompts while it is told to."""

    fails = False

    def prompts(self, call: Call, batch: Any) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("out of luck")
        return super().prompts(call, batch)


def test_a_launch_that_raised_can_be_repeated_with_fewer_pieces() -> None:
    # Given a sequence that decodes with its token on the device, beside a prompt that breaks the step
    kernels = Stumbling()
    bench = Bench(kernels=kernels)
    prompt = random_prompt(6)
    one, guilty = bench.sequence(prompt), bench.sequence(random_prompt(5))
    first = bench.runner.launch([whole(one)]).result()[0].token_id
    take(one, PENDING)
    kernels.fails = True
    with pytest.raises(RuntimeError, match="out of luck"):
        bench.runner.launch([whole(one), whole(guilty)])
    # When it runs alone
    second = bench.runner.launch([whole(one)]).result()[0].token_id
    # Then
    assert [first, second] == own_answer(bench.reference, prompt, 2)


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises on what makes a host wait for its device, which a CUDA graph cannot hold."""

    FORBIDDEN = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in self.FORBIDDEN, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class Averaging(ReferenceKernels):
    """Stands for kernels that do not wait: the reference reads lengths on the host."""

    def decode(self, call: Call, batch: DecodeBatch) -> torch.Tensor:
        shape = (*call.query.shape[:2], call.values.shape[-1])
        return call.query.mean(dim=-1, keepdim=True).expand(shape) + batch.lengths[:, None, None]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt2"])
def test_a_decode_step_never_waits_for_its_device(kind: str) -> None:
    # Given sequences whose prompts are behind them
    bench = Bench(kind, Averaging())
    sequences = [bench.sequence(random_prompt(3)), bench.sequence(random_prompt(4), sampling=Sampling(temperature=1))]
    bench.step(*sequences)
    # When they decode
    with NoWaiting():  # type: ignore[no-untyped-call]
        launch = bench.runner.launch([whole(one) for one in sequences])
    # Then nobody waited
    assert len(launch.result()) == 2


def test_the_guard_against_waiting_notices_it() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):  # type: ignore[no-untyped-call]
        torch.ones(1).item()


def test_a_dry_run_takes_every_row_and_the_largest_prefill_in_few_pages() -> None:
    # Given a model that notes how many tokens it is given
    bench = Bench()
    seen: list[int] = []
    bench.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    bench.storage.allocate(2)
    # When 100 prompt tokens are tried with pages for 32
    runner = PagedRunner(bench.model, bench.storage, ReferenceKernels(), Limits(NUM_ROWS, 32, 0))
    dry_run(runner, bench.storage, NUM_ROWS, 100)
    # Then
    assert seen == [100, NUM_ROWS]


def test_logits_alone_leave_every_row_to_those_who_come() -> None:
    # Given a runner whose rows have all been tried by sequences that never end
    bench = Bench()
    for _ in range(2):
        bench.runner.forward([whole(sequence([5, 6, 7], [row])) for row in range(NUM_ROWS)])
    # When as many sequences come as there are rows
    sampled = bench.runner.launch([whole(sequence([5, 6, 7], [row])) for row in range(NUM_ROWS)]).result()
    # Then
    assert [one.token_id for one in sampled] == own_answer(bench.reference, [5, 6, 7], 1) * NUM_ROWS


def test_a_device_that_answers_is_alive() -> None:
    assert Bench().runner.is_device_alive()
