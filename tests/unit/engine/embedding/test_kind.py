import json
from pathlib import Path

import pytest

from core.protocol import EMBEDDER, GENERATOR
from engine.embedding.kind import is_embedder, told_kind


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (["BertModel"], True),
        (["BertForMaskedLM"], True),
        (["LlamaForCausalLM"], False),
        (["GPT2LMHeadModel"], False),
        (["T5ForConditionalGeneration"], False),
        ([], False),
        (None, False),
    ],
)
def test_the_configuration_tells_encoders_from_what_generates(
    architectures: list[str] | None, expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    assert is_embedder(tmp_path) is expected


def test_a_list_of_modules_makes_any_model_an_embedder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    (tmp_path / "modules.json").write_text("[]")
    assert is_embedder(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "7"])
def test_what_has_no_configuration_is_no_embedder(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    assert not is_embedder(tmp_path)
    assert not is_embedder(tmp_path / "nowhere")


def test_the_files_tell_what_a_model_is_before_it_is_loaded(tmp_path: Path) -> None:
    assert told_kind(str(tmp_path)) == told_kind("org/on-the-hub") == told_kind("null:") == ""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert told_kind(str(tmp_path)) == GENERATOR
    (tmp_path / "modules.json").write_text("[]")
    assert told_kind(str(tmp_path)) == EMBEDDER
