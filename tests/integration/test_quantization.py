"""A model directory becomes a smaller one that the engine takes, whole or not at all."""

from pathlib import Path
from typing import Any

import pytest

from engine.models.loading import LoadOptions, load_generator
from engine.quantization.convert import quantize, read_figures
from tests.engine_models import save_tiny_model

# Rows of whole blocks, but for one product that bitsandbytes has to leave as it is.
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}


def ignore(fraction: float, message: str) -> None:
    """Nobody looks at the progress."""


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_the_copy_is_smaller_agrees_and_loads(method: str, tmp_path: Path) -> None:
    # Given
    source = save_tiny_model(tmp_path / "source", **SHAPE)
    # When
    figures = quantize(str(source), method, tmp_path / "out", ignore)
    # Then
    assert figures["weight_bytes_after"] < figures["weight_bytes_before"]
    assert figures["num_tokens"] == 1024
    assert 0.5 < figures["same_first_choice_fraction"] <= 1.0
    assert 0.0 <= figures["kl_divergence_nats"] < 2.0
    assert read_figures(tmp_path / "out") == figures
    generator = load_generator("small", str(tmp_path / "out"), LoadOptions("cpu", kv_bytes=1 << 20))
    assert generator.weight_bytes == figures["weight_bytes_after"]
    generator.close()


def test_a_copy_that_is_complete_is_not_made_again(tmp_path: Path) -> None:
    # Given
    source = save_tiny_model(tmp_path / "source", **SHAPE)
    figures = quantize(str(source), "int8", tmp_path / "out", ignore)
    # When
    again = quantize("nowhere", "int8", tmp_path / "out", ignore)
    # Then
    assert again == figures
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
