"""Known prefixes and latency under load, on a tiny model: what is asked, and what is counted."""

import io
import json
import random
from collections.abc import Iterator

import pytest

from benchmarks import engine_latency, engine_prefix
from benchmarks.engine_latency import LongPrompt, Start, Watch, full_house, long_prompt
from benchmarks.engine_loop import drain, load, outcomes, submit
from benchmarks.engine_prefix import (
    SYSTEM_TOKENS,
    TURN_TOKENS,
    WITH,
    WITHOUT,
    Answered,
    round_of_conversations,
    system_prompts,
)
from benchmarks.random_model import SHAPES, Shape
from benchmarks.report import Report
from benchmarks.workload import random_ids
from core.protocol import Failed
from engine.generation.generator import Generator
from engine.models.loading import LoadOptions
from engine.runtime import Reply

TINY = "tiny"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(autouse=True)
def _tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, TINY, Shape("llama", 320, SIZES))


@pytest.fixture
def generator() -> Iterator[Generator]:
    generator = load(TINY, LoadOptions("cpu", num_slots=18, prefill_tokens=64))
    yield generator
    generator.close()


def figures(stream: io.StringIO) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in map(json.loads, stream.getvalue().splitlines())}


def test_system_prompts_share_all_but_their_own_end() -> None:
    # When
    prompts = system_prompts(5, seed=0, vocabulary=320)
    # Then
    assert {tuple(prompt[:SYSTEM_TOKENS]) for prompt in prompts} == {tuple(prompts[0][:SYSTEM_TOKENS])}
    assert len({tuple(prompt) for prompt in prompts}) == 5
    assert {len(prompt) for prompt in prompts} == {800}


def test_every_turn_of_a_conversation_contains_the_one_before_and_its_answer(generator: Generator) -> None:
    # Given
    size = engine_prefix.Size(TINY, num_requests=2, num_conversations=2)
    # When both engines are one, so that they must agree
    answered = round_of_conversations({WITH: generator, WITHOUT: generator}, size, seed=3)
    prompts, answers = engine_prefix.converse(generator, 2, 3, 320)
    # Then
    assert [done.token_ids for done in answered[WITHOUT]] == [done.token_ids for done in answers]
    for earlier, later in zip(range(6), range(2, 8), strict=True):
        said = prompts[earlier] + answers[earlier].token_ids
        assert prompts[later][: len(said)] == said
        assert len(prompts[later]) == len(said) + TURN_TOKENS


def test_the_ratio_is_the_time_without_reuse_over_the_time_with_it() -> None:
    # Given
    stream = io.StringIO()
    rounds = [
        {WITH: [Answered(0.5, [1]), Answered(0.1, [2]), Answered(0.1, [3])], WITHOUT: [Answered(slow, [1])] * 3}
        for slow in (0.4, 0.5, 9.0)
    ]
    # When
    engine_prefix.summarize("conversation", rounds, Report(stream, "a machine", as_json=True))
    # Then
    found = figures(stream)
    assert found["prefix_ttft_ratio.conversation"] == 5
    assert found["conversation_ttft_seconds_p50_with_reuse"] == 0.1
    assert found["conversation_equal_answers_fraction"] == pytest.approx(1 / 3, rel=1e-3)


def test_gaps_are_those_between_tokens_of_one_request_in_the_time_that_is_asked_for(generator: Generator) -> None:
    # Given
    watch = Watch(generator)
    watch.token_times.update({"a": [1.0, 2.0, 4.0, 9.0], "b": [1.5, 2.25], "c": [2.0, 2.5]})
    # When / Then
    assert watch.gaps(["a", "b"], since=1.0, until=4.0) == [1.0, 2.0, 0.75]


def test_a_long_prompt_is_timed_from_its_arrival_to_its_first_token_while_others_decode(generator: Generator) -> None:
    # Given a prompt of several pieces
    size = engine_latency.Size(TINY, 300, num_steps_before=3, num_online=1, num_slots=18)
    # When
    with_online, bulk = (long_prompt(generator, size, 0, has_online=has_online) for has_online in (True, False))
    # Then one request is watched, or all sixteen, for as many steps
    assert len(with_online.before) == 3
    assert len(bulk.before) == 48
    assert len(with_online.during) >= 2
    assert len(bulk.during) == 16 * (len(bulk.during) // 16)
    assert sum(with_online.during) == pytest.approx(with_online.ttft_seconds, rel=0.9)
    assert generator.wait_seconds() is None


def test_steps_are_counted_until_the_prefill_of_an_online_request_in_a_full_house(generator: Generator) -> None:
    # Given
    size = engine_latency.Size(TINY, 300, num_steps_before=2, num_online=3, num_slots=18)
    # When
    starts = full_house(generator, size, seed=0)
    # Then
    assert len(starts) == 3
    assert all(1 <= start.num_steps <= 2 for start in starts)
    assert all(start.ttft_seconds > 0 for start in starts)
    assert generator.wait_seconds() is None


def test_the_latency_report_compares_during_with_before_and_tells_the_worst_start() -> None:
    # Given
    stream = io.StringIO()
    report = Report(stream, "a machine", as_json=True)
    # When
    engine_latency.report_long_prompts("online", [LongPrompt([0.1, 0.1], [0.15, 0.2], 1.0)], report)
    engine_latency.report_starts([[Start(1, 0.2), Start(2, 0.4)], [Start(1, 0.1)]], report)
    # Then
    found = figures(stream)
    assert found["itl_ratio_max.online"] == 2
    assert found["itl_ratio_p50.online"] == 1.75
    assert found["online_start_steps_max"] == 2
    assert found["online_ttft_seconds_p50"] == pytest.approx(0.2)


def test_a_request_that_fails_ends_the_benchmark(generator: Generator) -> None:
    # Given
    submit(generator, "one", random_ids(5, random.Random(0), 320), 3)
    (finished,) = drain(generator)
    assert finished.usage.completion_tokens == 3
    # When / Then
    with pytest.raises(RuntimeError, match="expected an answer to every request, got"):
        outcomes([Reply((b"", "two"), Failed("two", "model_failure", "a NaN"))])
