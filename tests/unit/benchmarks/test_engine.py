"""The engine beside its peers: what is asked, who is asked, and what is made of the rounds."""

import io
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.engine import parse
from benchmarks.peers.figures import ShapeResult, add_figures, add_rounds
from benchmarks.peers.process import Measured
from benchmarks.peers.rounds import Plan
from benchmarks.random_model import SHAPES, configuration
from benchmarks.report import Report


def measured(rate: float, other_cores: float = 0.0) -> Measured:
    return Measured(num_answer_tokens=round(10 * rate), seconds=10.0, other_cores=other_cores)


def a_result(shape: str = "115m") -> ShapeResult:
    rounds = {
        "ours": [measured(300), measured(900), measured(400)],
        "vllm": [measured(100), measured(200, other_cores=0.25), measured(250)],
        "static": [measured(50), measured(80), measured(90)],
    }
    return ShapeResult(shape, rounds, {"ours": [4.0, 9.0, 5.0], "vllm": [70.0]})


def printed(results: list[ShapeResult], *, as_json: bool) -> list[str]:
    stream = io.StringIO()
    add_figures(Report(stream, "a machine", as_json=as_json), results, as_json=as_json)
    return stream.getvalue().splitlines()


def test_ratios_are_the_median_of_ours_over_the_median_of_theirs() -> None:
    # When
    figures = {name: value for name, (value, _) in a_result().figures().items()}
    # Then
    assert figures == {
        "engine_tokens_per_second": 400,
        "vllm_tokens_per_second": 200,
        "transformers_static_tokens_per_second": 80,
        "ratio_to_vllm": 2.0,
        "ratio_to_transformers_static": 5.0,
        "ready_seconds": 5.0,
        "vllm_ready_seconds": 70.0,
        "others_cpu_max": 0.25,
    }


def test_a_peer_that_failed_has_neither_speed_nor_ratio() -> None:
    # Given
    result = a_result()
    # When
    result.forget("vllm")
    # Then
    assert "vllm_tokens_per_second" not in result.figures()
    assert "ratio_to_vllm" not in result.figures()
    assert result.figures()["ratio_to_transformers_static"] == (5.0, "ours/theirs")


def test_peers_without_us_have_speeds_but_no_ratios() -> None:
    # Given
    result = a_result()
    # When
    result.forget("ours")
    # Then
    assert [name for name in result.figures() if name.startswith("ratio")] == []
    assert result.figures()["vllm_tokens_per_second"] == (200, "tokens/s")


def test_in_json_every_figure_names_its_shape() -> None:
    # When
    figures = [json.loads(line) for line in printed([a_result("10m"), a_result("115m")], as_json=True)]
    # Then
    assert {"name": "ratio_to_vllm.10m", "value": 2.0, "unit": "ours/theirs", "machine": "a machine"} in figures
    assert [figure["value"] for figure in figures if figure["name"] == "ready_seconds.115m"] == [5.0]


def test_for_people_there_is_one_column_for_each_shape() -> None:
    # Given a peer that failed on one of them
    small, large = a_result("10m"), a_result("115m")
    small.forget("vllm")
    # When
    lines = [line.split() for line in printed([small, large], as_json=False)]
    # Then
    assert ["median", "(tokens/s)", "10m", "115m"] in lines
    assert ["engine_tokens_per_second", "400", "400"] in lines
    assert ["vllm_tokens_per_second", "nan", "200"] in lines


def test_every_round_is_told() -> None:
    # Given
    stream = io.StringIO()
    # When
    add_rounds(Report(stream, "a machine", as_json=True), a_result())
    # Then
    figures = {figure["name"]: figure["value"] for figure in map(json.loads, stream.getvalue().splitlines())}
    assert figures["rounds_115m.vllm.round_2"] == 200
    assert len(figures) == 9


def test_all_shapes_and_the_usual_peers_are_measured_in_three_rounds() -> None:
    # When
    chosen = parse([])
    # Then
    assert [(plan.shape, plan.num_requests) for plan in chosen.plans] == [("10m", 64), ("115m", 64), ("600m", 32)]
    assert chosen.peers == ("ours", "vllm", "continuous", "static")
    assert {(plan.num_rounds, plan.num_starts, plan.num_slots) for plan in chosen.plans} == {(3, 3, 64)}


def test_quick_is_one_round_on_the_smallest_shape_and_needs_no_environment_of_its_own() -> None:
    # When
    chosen = parse(["--quick"])
    # Then
    assert [(plan.shape, plan.num_requests, plan.num_rounds) for plan in chosen.plans] == [("10m", 16, 1)]
    assert chosen.peers == ("ours", "static")


def test_shapes_peers_rounds_slots_and_the_budget_of_prompts_can_be_chosen() -> None:
    # When
    options = ["--shape", "600m,10m", "--peers", "all", "--rounds", "5", "--slots", "32", "--prefill-tokens", "512"]
    chosen = parse(options)
    # Then
    assert [plan.shape for plan in chosen.plans] == ["600m", "10m"]
    assert chosen.peers == ("ours", "vllm", "continuous", "static", "serial")
    assert {(plan.num_rounds, plan.num_slots, plan.prefill_tokens) for plan in chosen.plans} == {(5, 32, 512)}


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--shape", "7b", "--shape: expected some of 10m, 115m, 600m, got 7b"),
        ("--peers", "ours,nobody", "--peers: expected some of ours, vllm, continuous, static, serial, got nobody"),
        ("--slots", "0", "expected at least 1, got 0"),
    ],
)
def test_what_is_not_known_is_refused(
    option: str, value: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # When
    with pytest.raises(SystemExit) as ended:
        parse([option, value])
    # Then
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def a_plan(**changes: int) -> Plan:
    numbers = {"num_requests": 64, "num_rounds": 3, "num_starts": 3, "num_slots": 64, "prefill_tokens": 2048, **changes}
    return Plan("10m", **numbers)


def test_rounds_have_the_same_lengths_and_other_prompts() -> None:
    # Given
    plan = a_plan()
    # When
    first, second, warmup = plan.turn(0), plan.turn(1), plan.warmup()
    # Then what one round leaves in a cache of prefixes helps no other
    assert first.answer_tokens == second.answer_tokens
    assert [len(prompt) for prompt in first.prompts] == [len(prompt) for prompt in second.prompts]
    assert {prompt[0] for prompt in first.prompts} != {prompt[0] for prompt in second.prompts}
    assert not {tuple(prompt) for prompt in warmup.prompts} & {tuple(p) for p in (*first.prompts, *second.prompts)}
    assert max(token for prompt in first.prompts for token in prompt) < SHAPES["10m"].vocabulary


def test_room_for_k_v_is_what_the_requests_need_that_run_at_once() -> None:
    # Given
    few, many = a_plan(num_slots=8), a_plan(num_slots=512)
    # When
    turn = few.turn(0)
    longest = max(len(prompt) + length for prompt, length in zip(turn.prompts, turn.answer_tokens, strict=True))
    # Then
    assert few.setup("model").kv_tokens == 8 * longest
    assert many.setup("model").kv_tokens == 64 * longest


@pytest.mark.parametrize(("shape", "millions"), [("10m", 10), ("115m", 115), ("600m", 596)])
def test_shapes_have_as_many_parameters_as_their_names_say(shape: str, millions: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(shape))  # type: ignore[no-untyped-call]
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.02)
