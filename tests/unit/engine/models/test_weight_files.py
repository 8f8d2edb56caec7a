from pathlib import Path

from engine.models.weight_files import stored_bytes


def test_the_weights_of_a_directory_are_its_weight_files(tmp_path: Path) -> None:
    # Given weights in two parts, the same once more in another form, and a tokenizer
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 30)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 12)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 42)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 7)
    # Then
    assert stored_bytes(str(tmp_path)) == 42


def test_older_forms_count_where_there_is_no_newer(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 5)
    assert stored_bytes(str(tmp_path)) == 5


def test_what_is_no_directory_of_weights_counts_for_nothing(tmp_path: Path) -> None:
    assert [stored_bytes(source) for source in (str(tmp_path), "somebody/model", "null:0.5")] == [0, 0, 0]
