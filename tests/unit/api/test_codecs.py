"""Which models' tokenizers are found, and how long they are kept."""

import json
from pathlib import Path

import pytest

from api import codecs
from api.codecs import LOOK_AGAIN_SECONDS, Codecs, find_directory
from tests.engine_models import CHAT_TEMPLATE, tiny_tokenizer


def save(directory: Path, **config: object) -> Path:
    directory.mkdir(parents=True)
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory


def test_the_smaller_bound_of_setting_and_configuration_holds(tmp_path: Path) -> None:
    # Given
    sources = {
        "flat": save(tmp_path / "flat", max_position_embeddings=64),
        "nested": save(tmp_path / "nested", text_config={"max_position_embeddings": 32}),
        "gpt": save(tmp_path / "gpt", n_positions=16),
        "free": save(tmp_path / "free"),
    }
    known = Codecs({name: str(path) for name, path in sources.items()}, 50)
    # When
    found = {name: known.find(name) for name in sources}
    # Then
    assert {name: model and model.context_tokens for name, model in found.items()} == {
        "flat": 50,
        "nested": 32,
        "gpt": 16,
        "free": 50,
    }
    assert known.find("flat") is found["flat"], "it is read once"


def test_a_model_that_appears_later_is_found_after_a_while(tmp_path: Path) -> None:
    # Given
    now = [0.0]
    known = Codecs({"late": str(tmp_path / "late")}, 50, lambda: now[0])
    assert known.find("late") is None
    save(tmp_path / "late")
    # When / Then
    assert known.find("late") is None, "nobody looks at the disk for every request"
    now[0] = LOOK_AGAIN_SECONDS
    assert known.find("late") is not None


def test_of_models_that_cannot_be_read_nothing_is_known(tmp_path: Path) -> None:
    broken = save(tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    known = Codecs({"broken": str(broken), "null": "null:0.5", "path": str(tmp_path)}, 50)
    assert [known.find(name) for name in ("broken", "null", "path", "unknown")] == [None] * 4


def test_names_on_the_hub_are_looked_up_in_the_local_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    cached = save(tmp_path / "snapshot") / "tokenizer.json"
    asked: list[tuple[str, str]] = []

    def look_up(repository: str, file: str) -> str | None:
        asked.append((repository, file))
        return str(cached) if repository == "owner/here" else None

    monkeypatch.setattr(codecs, "try_to_load_from_cache", look_up)
    # When
    found = [find_directory(source) for source in ("owner/here", "owner/gone", "null:", "null:0.1", "/a/b", "a/b/c")]
    # Then
    assert found == [tmp_path / "snapshot", None, None, None, None, None]
    assert asked == [("owner/here", "tokenizer.json"), ("owner/gone", "tokenizer.json")]
