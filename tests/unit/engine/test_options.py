"""The command line of an engine."""

import pytest

from engine.options import parse_options

REQUIRED = ["--endpoint", "ipc:///x", "--model", "a=/models/a", "--model", "b=null:0.5"]


def test_models_keep_their_order_and_credits_follow_the_slots() -> None:
    options = parse_options([*REQUIRED, "--slots", "8", "--preload", "b"])
    assert list(options.models.items()) == [("a", "/models/a"), ("b", "null:0.5")]
    assert (options.num_slots, options.credits, options.preload) == (8, 16, ("b",))


def test_a_stuck_step_and_a_hot_device_have_limits_that_can_be_taken_away() -> None:
    options = parse_options(REQUIRED)
    assert (options.max_step_seconds, options.max_temperature_celsius) == (120.0, 88.0)
    options = parse_options([*REQUIRED, "--max-step-seconds", "0", "--max-temperature-celsius", "0"])
    assert (options.max_step_seconds, options.max_temperature_celsius) == (0.0, 0.0)


def test_graphs_are_made_unless_somebody_forbids_it() -> None:
    assert parse_options(REQUIRED).graphs
    assert not parse_options([*REQUIRED, "--no-graphs"]).graphs


@pytest.mark.parametrize(("device", "expected"), [("cpu", (64, 2048, 128)), ("cuda", (256, 8192, 512))])
def test_what_nobody_asked_for_follows_from_the_device(device: str, expected: tuple[int, int, int]) -> None:
    options = parse_options([*REQUIRED, "--device", device])
    assert (options.num_slots, options.prefill_tokens, options.credits) == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "a=/elsewhere"], "expected different names"),
        (["--preload", "c"], "expected one of a, b, got c"),
        (["--model", "nosource"], "expected NAME=SOURCE, got 'nosource'"),
        (["--max-context-tokens", "0"], "expected at least 1, got 0"),
        (["--threads", "-1"], "expected 0 or more, got -1"),
        (["--device", "tpu"], "invalid choice"),
        (["--max-step-seconds", "-1"], "expected 0 or more, got -1"),
        (["--max-temperature-celsius", "nan"], "expected 0 or more, got nan"),
    ],
)
def test_wrong_arguments_end_the_process_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options([*REQUIRED, *arguments])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err
