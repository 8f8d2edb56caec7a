"""The command line of an engine."""

import pytest

from engine.options import parse_options

REQUIRED = ["--endpoint", "ipc:///x", "--model", "a=/models/a", "--model", "b=null:0.5"]


def test_models_keep_their_order_and_credits_follow_the_slots() -> None:
    options = parse_options([*REQUIRED, "--slots", "8", "--preload", "b"])
    assert list(options.models.items()) == [("a", "/models/a"), ("b", "null:0.5")]
    assert (options.num_slots, options.credits, options.preload) == (8, 32, ("b",))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "a=/elsewhere"], "expected different names"),
        (["--preload", "c"], "expected one of a, b, got c"),
        (["--model", "nosource"], "expected NAME=SOURCE, got 'nosource'"),
        (["--slots", "0"], "expected at least 1, got 0"),
        (["--threads", "-1"], "expected 0 or more, got -1"),
        (["--device", "tpu"], "invalid choice"),
    ],
)
def test_wrong_arguments_end_the_process_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options([*REQUIRED, *arguments])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err
