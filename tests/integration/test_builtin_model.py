"""The built-in model as a whole: what the real command makes, what stops it, and how much it has learned."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from core.prompts import PromptCodec
from engine.builtin import MODEL_FILES, is_complete, read_training
from engine.builtin.evaluate import evaluate, join_documents, split_documents
from tests.builtin_model import train_builtin, train_command

QUICK_STEPS = 6
CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What does json.loads do?"}]


@pytest.fixture(scope="session")
def quick_training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A whole directory after few steps, everything but the learning; and what the command reported."""
    directory = tmp_path_factory.mktemp("quick") / "models" / "tiny"
    done = train_builtin(directory, "--steps", str(QUICK_STEPS))
    return directory, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def quick_model(quick_training: tuple[Path, list[dict[str, Any]]]) -> Path:
    return quick_training[0]


@pytest.fixture
def endless_training(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A training that has done its first steps and has most of them before it, and its directory."""
    directory = tmp_path / "tiny"
    command = train_command(directory, "--steps", "1000000", "--seconds-limit", "100000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("step" in json.loads(line)["detail"] for line in process.stdout)
            yield process, directory
        finally:
            process.kill()


def load(directory: Path) -> tuple[Any, Any, PromptCodec]:
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    return model, tokenizer, PromptCodec.load(directory)


def test_a_finished_directory_opens_in_transformers_and_in_the_codec_alike(quick_model: Path) -> None:
    # Given a directory that the command made
    model, tokenizer, codec = load(quick_model)
    # When both read a text and a chat, then they agree with each other and with the model
    assert codec.encode_text("def f(x):") == tokenizer("def f(x):")["input_ids"]
    assert codec.encode_chat(CHAT) == tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert codec.vocab_size == len(tokenizer) == model.config.vocab_size
    assert 600_000 <= model.num_parameters() <= 1_000_000
    assert model.config.max_position_embeddings >= 1024
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    saved = GenerationConfig.from_pretrained(quick_model)
    assert (saved.bos_token_id, saved.eos_token_id, saved.pad_token_id) == ids
    assert None not in ids


def test_progress_is_one_object_a_line_and_rises_to_the_end(
    quick_training: tuple[Path, list[dict[str, Any]]],
) -> None:
    *progress, last = quick_training[1]
    assert {event["event"] for event in progress} == {"progress"}
    fractions = [event["fraction"] for event in progress]
    assert fractions == sorted(fractions)
    assert 0.0 <= fractions[0] <= fractions[-1] < 1.0
    assert last["event"] == "done"
    assert last["steps"] == QUICK_STEPS
    assert {"perplexity", "unigram_perplexity", "ratio", "bits_per_byte", "seconds", "parameters"} <= last.keys()


def test_a_second_call_changes_nothing_and_needs_no_torch(quick_model: Path) -> None:
    # Given a complete directory
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in quick_model.iterdir()}
    # When the command runs again where torch cannot be imported
    done = run_without_torch("train-builtin", "--out", str(quick_model))
    # Then it says so and leaves every file alone
    assert done.returncode == 0, done.stderr
    event = json.loads(done.stdout)
    assert event["event"] == "done"
    assert event["detail"].endswith("is complete already")
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in quick_model.iterdir()} == before


def test_missing_libraries_are_a_sentence_that_says_how_to_install_them(tmp_path: Path) -> None:
    done = run_without_torch("train-builtin", "--out", str(tmp_path / "tiny"))
    assert done.returncode == 1
    assert "pip install 'millrace[engine]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(train_command(tmp_path / "file" / "tiny"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ERROR engine.jobs: cannot read or write: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [["--seconds-limit", "0"], ["--steps", "0"], ["--steps", "many"]])
def test_figures_that_make_no_sense_are_refused(tmp_path: Path, options: list[str]) -> None:
    command = train_command(tmp_path / "tiny", *options)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert options[0] in done.stderr


def test_a_training_that_is_told_to_end_leaves_nothing(endless_training: tuple[subprocess.Popen[str], Path]) -> None:
    # Given a training on its way, when it gets SIGTERM
    process, directory = endless_training
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    # Then it says so by its status, and neither the model nor a part of it is there
    assert process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in directory.parent.iterdir()] == [".tiny.lock"]


def test_a_killed_training_leaves_no_model_and_hinders_no_other(
    endless_training: tuple[subprocess.Popen[str], Path],
) -> None:
    # Given a training that was killed
    process, directory = endless_training
    process.kill()
    process.communicate(timeout=60)
    assert not directory.exists()
    # When it is started again, then it makes the model and takes the remains away
    train_builtin(directory, "--steps", "1")
    assert is_complete(directory)
    assert sorted(path.name for path in directory.parent.iterdir()) == [".tiny.lock", "tiny"]


def test_two_at_once_make_one_model_and_the_same_as_any_other(quick_model: Path, tmp_path: Path) -> None:
    # Given two processes that start together
    command = train_command(tmp_path / "tiny", "--steps", str(QUICK_STEPS))
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=200) for process in pair]
    # Then both end well with the same figures, which only one of them can have made
    assert [process.returncode for process in pair] == [0, 0], outputs
    last = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    assert last[0] == last[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "tiny"]
    # And the same steps gave the same model as they did before
    first, second = load(quick_model)[0].state_dict(), load(tmp_path / "tiny")[0].state_dict()
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], atol=1e-3), name


def test_completeness_takes_every_file(quick_model: Path, tmp_path: Path) -> None:
    assert is_complete(quick_model)
    assert not is_complete(tmp_path)
    for missing in MODEL_FILES:
        directory = tmp_path / missing
        directory.mkdir()
        for name in set(MODEL_FILES) - {missing}:
            (directory / name).touch()
        assert not is_complete(directory)


def test_the_built_in_model_has_learned_something(builtin_model: Path) -> None:
    """Given the fully trained model, then its figures are as promised, and can be measured again."""
    figures = read_training(builtin_model)
    assert figures["ratio"] <= 0.22
    assert figures["ratio"] == pytest.approx(figures["perplexity"] / figures["unigram_perplexity"], rel=1e-3)
    assert figures["perplexity_by_window"]["1024"] <= 1.1 * figures["perplexity"]  # far positions are no garbage
    held_out = (builtin_model / "heldout.txt").read_text(encoding="utf-8")
    quality = evaluate(builtin_model, held_out)
    assert quality.perplexity == pytest.approx(figures["perplexity"], rel=0.01)
    assert quality.bits_per_byte == pytest.approx(figures["bits_per_byte"], rel=0.01)
    assert quality.num_tokens == figures["num_tokens"] > 10_000


def test_answers_of_the_built_in_model_end_and_are_mostly_words(builtin_model: Path) -> None:
    # Given a question in the format that it was trained on
    model, _, codec = load(builtin_model)
    prompt = torch.tensor([codec.encode_chat(CHAT[1:])] * 16)
    # When it answers sixteen times, sampling
    torch.manual_seed(0)
    answers = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, do_sample=True, temperature=0.7
    )[:, prompt.shape[1] :].tolist()
    # Then most answers end by themselves, and most characters are letters
    end = model.generation_config.eos_token_id
    assert sum(end in answer for answer in answers) >= 8
    text = "".join(codec.decode(answer) for answer in answers)
    assert sum(character.isalpha() or character == " " for character in text) > 0.8 * len(text)


def test_quality_can_be_measured_at_any_window_and_for_several_documents(quick_model: Path) -> None:
    documents = ["Return the name.\fIt is short.", "Return the list of names that are given."]
    text = join_documents(documents)
    assert len(split_documents(text)) == 2
    short, long = (evaluate(quick_model, text, window_tokens) for window_tokens in (2, 500))
    assert short.num_tokens == long.num_tokens
    assert short.num_bytes == sum(len(document.encode()) for document in documents)
    assert 1.0 < long.perplexity < 10_000
    assert short.perplexity != long.perplexity


def run_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; sys.modules['torch'] = None; from engine.jobs import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_corpus_and_tokenizer_need_no_torch() -> None:
    program = (
        "import sys, engine.jobs, engine.builtin.corpus, engine.builtin.tokenizer, engine.builtin.schedule, "
        "engine.builtin.publish; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
