"""Requests against the scheduling of the runtime, over a deterministic encoder and over a real model alike."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from core.errors import ContextLengthExceeded, InvalidRequest
from core.protocol import Embed, Embedded, Failed, Generate, Spent
from engine.embedding.encoder import Encoder
from engine.embedding.runtime import BatchLimits, EmbeddingRuntime, Encoding
from engine.generation.flights import DeviceLost
from engine.runtime import Arrival
from tests.embedding_models import DIMENSIONS, MAX_TOKENS, WORDS, save_embedding_model

POISON = 13


class ArithmeticEncoder:
    """Embeds token ids by arithmetic; the token `POISON` raises, `POISON + 1` gives NaN."""

    max_tokens = MAX_TOKENS
    dimensions = DIMENSIONS
    vocabulary_size = len(WORDS) + 4
    weight_bytes = 0

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []

    def tokenize(self, text: str) -> list[int]:
        return [2, *(int(word[1:]) + 4 for word in text.split()), 3]

    def embed(self, inputs: Sequence[tuple[int, ...]]) -> npt.NDArray[np.float32]:
        self.batches.append(list(inputs))
        if any(POISON in token_ids for token_ids in inputs):
            raise RuntimeError("broken kernel")
        rows = [self._row(token_ids) for token_ids in inputs]
        return np.array(rows, dtype=np.float32)

    def is_device_alive(self) -> bool:
        return True

    def close(self) -> None:
        self.batches.clear()

    def _row(self, token_ids: tuple[int, ...]) -> list[float]:
        if POISON + 1 in token_ids:
            return [float("nan")] * DIMENSIONS
        return [float(np.sin(sum(token_ids) * (place + 1))) for place in range(DIMENSIONS)]


@pytest.fixture(scope="module")
def real_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    directory = save_embedding_model(tmp_path_factory.mktemp("embedder") / "model")
    return Encoder("tiny", SentenceTransformer(str(directory), device="cpu").eval())


@pytest.fixture(params=["arithmetic", "real"])
def encoder(request: pytest.FixtureRequest, real_encoder: Encoder) -> Encoding:
    return ArithmeticEncoder() if request.param == "arithmetic" else real_encoder


def runtime(encoder: Encoding, max_tokens: int = 64, max_inputs: int = 8) -> EmbeddingRuntime:
    return EmbeddingRuntime("tiny", encoder, BatchLimits(max_tokens, max_inputs), clock=lambda: 1.0)


def submit(target: EmbeddingRuntime, name: str, texts: list[str], **fields: object) -> None:
    target.submit(Arrival(b"client", Embed(name, "tiny", texts, **fields), 0.0))  # type: ignore[arg-type]


def run(target: EmbeddingRuntime) -> dict[str, Embedded | Failed]:
    outcomes: dict[str, Embedded | Failed] = {}
    while target.wait_seconds() is not None:
        for reply in target.step():
            assert isinstance(reply.message, Embedded | Failed)
            assert reply.message.id not in outcomes
            outcomes[reply.message.id] = reply.message
    return outcomes


def vectors(outcome: Embedded | Failed) -> npt.NDArray[np.float32]:
    assert isinstance(outcome, Embedded), outcome
    return np.stack([np.frombuffer(embedding, "<f4") for embedding in outcome.embeddings])


def text(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


class TestEveryEncoder:
    def test_an_input_has_the_embedding_that_it_has_alone(self, encoder: Encoding) -> None:
        # Given inputs of many lengths
        texts = [text(*range(50, 50 + length)) for length in (1, 9, 2, 30, 5)]
        target = runtime(encoder)

        # When
        submit(target, "all", texts)
        together = vectors(run(target)["all"])

        # Then
        alone = np.concatenate([encoder.embed([tuple(encoder.tokenize(one))]) for one in texts])
        assert np.allclose(together, alone, atol=1e-5)
        assert len({tuple(row) for row in together.round(3).tolist()}) == len(texts)

    def test_leading_dimensions_have_length_one(self, encoder: Encoding) -> None:
        # Given
        target = runtime(encoder)

        # When
        submit(target, "whole", [text(1)])
        submit(target, "head", [text(1)], dimensions=5)
        outcomes = run(target)

        # Then
        whole, head = vectors(outcomes["whole"])[0], vectors(outcomes["head"])[0]
        assert head.shape == (5,)
        assert np.allclose(head, whole[:5] / np.linalg.norm(whole[:5]), atol=1e-6)

    def test_usage_counts_tokens_of_the_prompt_alone(self, encoder: Encoding) -> None:
        # Given
        target = runtime(encoder)

        # When
        submit(target, "two", [text(1, 2, 3), text(4)])
        outcome = run(target)["two"]

        # Then
        assert isinstance(outcome, Embedded)
        assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (3 + 1 + 2 * 2, 0)

    def test_token_ids_are_taken_as_they_are(self, encoder: Encoding) -> None:
        # Given
        target = runtime(encoder)
        ids = encoder.tokenize(text(7, 8))

        # When
        submit(target, "text", [text(7, 8)])
        target.submit(Arrival(b"client", Embed("ids", "tiny", token_ids=[ids]), 0.0))
        outcomes = run(target)

        # Then
        assert np.array_equal(vectors(outcomes["text"]), vectors(outcomes["ids"]))

    @pytest.mark.parametrize(
        ("fields", "part"),
        [
            ({"texts": []}, "1 to 2048"),
            ({"texts": ["w1", ""]}, "input[1]"),
            ({"texts": ["w1"], "token_ids": [[1]]}, "either"),
            ({}, "either"),
            ({"texts": ["w1"], "dimensions": 0}, "dimensions"),
            ({"texts": ["w1"], "dimensions": DIMENSIONS + 1}, "dimensions"),
            ({"token_ids": [[len(WORDS) + 4]]}, "token ids"),
            ({"token_ids": [[-1]]}, "token ids"),
            ({"texts": ["\ud800"]}, "surrogate"),
        ],
    )
    def test_what_cannot_be_embedded_is_refused_by_name(
        self, real_encoder: Encoder, fields: dict[str, object], part: str
    ) -> None:
        target = runtime(real_encoder)
        with pytest.raises(InvalidRequest, match=part.replace("[", r"\[")):
            target.submit(Arrival(b"client", Embed("x", "tiny", **fields), 0.0))  # type: ignore[arg-type]
        assert target.wait_seconds() is None

    def test_an_input_beyond_the_models_length_is_refused_by_its_place(self, encoder: Encoding) -> None:
        with pytest.raises(ContextLengthExceeded, match=r"input\[1\] has 67 tokens"):
            submit(runtime(encoder), "long", [text(1), text(*[2] * (MAX_TOKENS + 1))])

    def test_a_prompt_to_be_answered_is_refused(self, encoder: Encoding) -> None:
        with pytest.raises(InvalidRequest, match="embedding model"):
            runtime(encoder).submit(Arrival(b"client", Generate("x", "tiny", text="w1"), 0.0))


REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(20, 40), min_size=1, max_size=4), st.integers(0, 1)), min_size=1, max_size=12
)


@given(REQUESTS, st.integers(4, 60), st.sets(st.integers(0, 11)))
def test_every_request_that_is_not_cancelled_gets_its_own_embeddings(
    requests: list[tuple[list[int], int]], max_tokens: int, cancelled: set[int]
) -> None:
    # Given
    encoder = ArithmeticEncoder()
    target = runtime(encoder, max_tokens=max_tokens, max_inputs=4)
    for number, (words, priority) in enumerate(requests):
        submit(target, str(number), [text(*[word] * (word % 5 + 1)) for word in words], priority=priority)

    # When
    outcomes = {reply.message.id: reply.message for reply in target.step()}
    for number in cancelled:
        target.cancel((b"client", str(number)))
    outcomes |= run(target)

    # Then
    assert set(outcomes) >= {str(number) for number in range(len(requests)) if number not in cancelled}
    for name, outcome in outcomes.items():
        assert isinstance(outcome, Embedded)
        ids = [tuple(encoder.tokenize(text(*[word] * (word % 5 + 1)))) for word in requests[int(name)][0]]
        assert np.array_equal(vectors(outcome), ArithmeticEncoder().embed(ids))
    for batch in encoder.batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= max_tokens
        assert len(set(batch)) == len(batch)
    assert target.gauges().num_running == target.gauges().num_waiting == 0


@pytest.mark.parametrize("token", [POISON, POISON + 1])
def test_an_input_that_breaks_the_model_fails_its_own_request_alone(token: int) -> None:
    # Given three requests of which one holds the bad input beside a good one
    target = runtime(ArithmeticEncoder())
    submit(target, "first", [text(30)])
    submit(target, "bad", [text(31), text(token - 4), text(30)])
    submit(target, "last", [text(32)])

    # When
    outcomes = run(target)

    # Then
    assert isinstance(outcomes["bad"], Failed)
    assert outcomes["bad"].code == "model_failure"
    assert isinstance(outcomes["first"], Embedded)
    assert isinstance(outcomes["last"], Embedded)


def test_identical_inputs_are_computed_once() -> None:
    # Given
    encoder = ArithmeticEncoder()
    target = runtime(encoder)
    for name in ("a", "b", "c"):
        submit(target, name, [text(30), text(31)])

    # When
    outcomes = run(target)

    # Then
    assert len(outcomes) == 3
    assert sum(map(len, encoder.batches)) == 2


def test_requests_share_the_time_of_their_steps_by_tokens() -> None:
    # Given a clock that a batch advances by three seconds, and two requests for the same text
    now = [0.0]

    class SlowEncoder(ArithmeticEncoder):
        def embed(self, inputs: Sequence[tuple[int, ...]]) -> npt.NDArray[np.float32]:
            now[0] += 3.0
            return super().embed(inputs)

    target = EmbeddingRuntime("tiny", SlowEncoder(), BatchLimits(64, 8), clock=lambda: now[0])
    submit(target, "alone", [text(30)])
    submit(target, "first", [text(31)])
    submit(target, "second", [text(31)])
    # When
    outcomes = run(target)
    # Then
    seconds = {
        name: outcome.timing.device_seconds for name, outcome in outcomes.items() if isinstance(outcome, Embedded)
    }
    assert seconds == {"alone": 1.5, "first": 0.75, "second": 0.75}


def test_a_request_that_is_cancelled_half_way_says_what_it_has_used() -> None:
    # Given one input at a time
    target = runtime(ArithmeticEncoder(), max_inputs=1)
    submit(target, "long", [text(30), text(31)])
    submit(target, "waiting", [text(32)])
    target.step()
    # When
    spent = [target.cancel((b"client", name)) for name in ("long", "waiting")]
    # Then
    assert spent == [Spent(prompt_tokens=3), None]


def test_batches_shrink_for_good_when_memory_runs_out() -> None:
    # Given a device that holds 12 padded tokens
    class SmallEncoder(ArithmeticEncoder):
        def embed(self, inputs: Sequence[tuple[int, ...]]) -> npt.NDArray[np.float32]:
            if len(inputs) * max(map(len, inputs)) > 12:
                raise MemoryError
            return super().embed(inputs)

    encoder = SmallEncoder()
    target = runtime(encoder, max_tokens=64)
    submit(target, "many", [text(number) for number in range(30, 50)])

    # When
    outcome = run(target)["many"]

    # Then
    assert len(vectors(outcome)) == 20
    assert max(map(len, encoder.batches)) == 4


def test_a_lost_device_ends_the_engine_and_not_every_request() -> None:
    # Given
    class LostEncoder(ArithmeticEncoder):
        def is_device_alive(self) -> bool:
            return False

    target = runtime(LostEncoder())
    submit(target, "any", [text(POISON - 4)])

    # Then
    with pytest.raises(DeviceLost):
        run(target)


def test_steps_are_counted_by_how_many_inputs_they_had() -> None:
    # Given
    target = runtime(ArithmeticEncoder(), max_inputs=3)
    submit(target, "four", [text(number) for number in range(30, 34)])

    # When
    run(target)

    # Then a step of three and one of one
    steps = target.gauges().steps
    assert steps.prefill.num_steps == 2
    assert steps.rows_histogram == [1, 0, 1]


def test_a_waiting_person_comes_before_bulk() -> None:
    # Given
    target = runtime(ArithmeticEncoder(), max_tokens=3, max_inputs=1)
    submit(target, "bulk", [text(30), text(31)])
    submit(target, "online", [text(32)], priority=10)

    # Then
    assert [reply.message.id for reply in target.step()] == ["online"]


Save = Callable[[Path], Path]


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(save_embedding_model, id="normalised"),
        pytest.param(lambda path: save_embedding_model(path, is_normalized=False), id="as pooled"),
        pytest.param(lambda path: save_embedding_model(path, prompt="w1 w2 "), id="with a default prompt"),
    ],
)
def test_embeddings_are_those_of_the_library(save: Save, tmp_path: Path) -> None:
    # Given
    model = SentenceTransformer(str(save(tmp_path / "model")), device="cpu").eval()
    texts = [text(*range(5, 5 + length)) for length in (1, 40, 3, 17)]

    # When
    target = runtime(Encoder("tiny", model), max_tokens=80)
    submit(target, "all", texts)

    # Then
    assert np.allclose(vectors(run(target)["all"]), model.encode(texts), atol=1e-5)
