"""What is compared: equal work on both sides, counted, and the same definition of latencies."""

import io
import json

import pytest

from benchmarks.processes import Reading, cores_used
from benchmarks.report import Report
from benchmarks.system import Round, check_equal_work, generates, latencies_of, summarize
from benchmarks.workload import batch_file, questions
from core.openai.completion import CHAT_ENDPOINT, parse_body
from core.protocol import Finished, Timing, Usage


def finished(first: float, total: float, num_tokens: int) -> Finished:
    return Finished("1", "w1", "length", Usage(3, num_tokens), Timing(0.0, first, total))


def a_round(
    prompt_tokens: int, answer_tokens: int, seconds: float = 10.0, cores: dict[str, dict[str, float]] | None = None
) -> Round:
    latencies = latencies_of([finished(1.0, 2.0, 3)])
    return Round(
        prompt_tokens,
        answer_tokens,
        seconds,
        seconds - 0.5,
        latencies,
        cores or {"engine-cpu": {"cores": 2.0}, "others": {"cores": 0.1}},
    )


def test_the_engine_alone_is_asked_what_the_batch_file_asks() -> None:
    # Given
    asked = questions(12)
    bodies = [json.loads(line)["body"] for line in batch_file(asked, "random").splitlines()]
    # When
    requests = generates(asked)
    # Then
    expected = [parse_body(CHAT_ENDPOINT, json.dumps(body).encode()) for body in bodies]
    assert [(request.messages, request.sampling) for request in requests] == [
        (request.messages, request.sampling) for request in expected
    ]


def test_rounds_that_did_the_work_that_was_asked_for_are_accepted() -> None:
    asked = questions(3)
    tokens = (sum(q.prompt_tokens for q in asked), sum(q.answer_tokens for q in asked))
    check_equal_work([a_round(*tokens), a_round(*tokens)], asked)


def test_a_round_with_another_number_of_tokens_is_refused() -> None:
    # Given
    asked = questions(3)
    tokens = (sum(q.prompt_tokens for q in asked), sum(q.answer_tokens for q in asked))
    # When / Then
    with pytest.raises(RuntimeError, match="in every round, got"):
        check_equal_work([a_round(*tokens), a_round(tokens[0], tokens[1] - 1)], asked)


def test_latencies_are_those_of_the_first_token_and_between_tokens() -> None:
    # Given the second answer has one token, so nothing is between its tokens
    answers = [finished(1.0, 3.0, 5), finished(2.0, 2.0, 1)]
    # When
    latencies = latencies_of(answers)
    # Then
    assert latencies == {
        "ttft_seconds_p50": 1.5,
        "ttft_seconds_p95": pytest.approx(1.95),
        "itl_seconds_p50": 0.5,
        "itl_seconds_p95": 0.5,
    }


def test_the_tax_is_the_median_of_the_system_over_that_of_the_engine_alone() -> None:
    # Given
    stream = io.StringIO()
    alone = [a_round(1, 100, seconds) for seconds in (1.0, 2.0, 50.0)]
    system = [a_round(1, 100, seconds) for seconds in (2.5, 0.1, 2.5)]
    # When
    summarize(alone, system, Report(stream, "a machine", as_json=True))
    # Then
    figures = {figure["name"]: figure["value"] for figure in map(json.loads, stream.getvalue().splitlines())}
    assert figures["alone_tokens_per_second"] == 50
    assert figures["system_tokens_per_second"] == 40
    assert figures["system_seconds_outside_engine"] == 0.5
    assert figures["system_tax"] == 0.8


def test_tokens_per_cpu_second_count_every_part_of_ours_and_nobody_elses() -> None:
    # Given
    cores = {"engine-cpu": {"cores": 0.75}, "api": {"cores": 0.25}, "others": {"cores": 1.0}}
    # When / Then
    assert a_round(1, 100, seconds=10.0, cores=cores).tokens_per_cpu_second == 10


def test_cores_are_named_busiest_first_without_parts_that_came_later_or_did_nothing() -> None:
    # Given
    before = Reading(5.0, {"api": 1.0, "engine-cpu": 10.0, "beat": 3.0}, machine=100.0)
    after = Reading(15.0, {"api": 2.0, "engine-cpu": 28.0, "beat": 3.0, "late": 5.0}, machine=120.0)
    # When
    used = cores_used(before, after)
    # Then
    assert used == {"engine-cpu": {"cores": 1.8}, "api": {"cores": 0.1}, "others": {"cores": pytest.approx(0.1)}}
    assert list(used) == ["engine-cpu", "api", "others"]
