"""The command line with the built-in model, as somebody at a shell sees it: demo, batch commands, one question, a row
that is too long, and a job of the heavy worker."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.demo import questions_path
from cli.local.running import running
from core.redis_url import broker_url
from core.settings import BUILTIN_MODEL, PREFIX, Settings
from tasks.factory import create_app
from tasks.messages import TRAIN_BUILTIN_MODEL
from tasks.queues import heavy_queue
from tests.polling import until
from tests.running import temporary_settings
from workers.instance import Instance


@dataclass(frozen=True)
class Shell:
    settings: Settings
    cwd: Path

    def run(self, *arguments: str, status: int = 0) -> str:
        """What the command prints; it must end with this status."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cli.main", *arguments],
            cwd=self.cwd,
            env={
                **kept,
                "MILLRACE_DATA_DIR": self.settings.data_dir,
                "MILLRACE_PORT": str(self.settings.port),
                "MILLRACE_FLOWER_PORT": str(self.settings.flower_port),
                "COLUMNS": "200",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def settings(builtin_model: Path) -> Iterator[Settings]:
    """Of a data directory that holds the trained model already."""
    with temporary_settings(auth="required") as settings:
        shutil.copytree(builtin_model, settings.data_path / "models" / BUILTIN_MODEL)
        yield settings


@pytest.fixture(scope="module")
def shell(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with running(settings):
        yield Shell(settings, tmp_path_factory.mktemp("shell"))


def line(custom_id: str, content: str, **body: object) -> str:
    return json.dumps(
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": BUILTIN_MODEL,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": 8,
                "temperature": 0,
                **body,
            },
        }
    )


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_the_demo_answers_every_question_and_stops_everything(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Given nothing that runs
    shell = Shell(settings, tmp_path_factory.mktemp("demo"))
    # When
    output = shell.run("demo")
    # Then
    num_questions = len(questions_path().read_text().splitlines())
    assert num_questions >= 100
    assert f"{num_questions} / 0" in output
    for wanted in ("answer tokens/s", "time to first token", "between tokens", "answers are in", "Q: ", "A: "):
        assert wanted in output
    assert len(rows(settings.data_path / "demo" / "answers.jsonl")) == num_questions
    assert Instance.of(settings).run_path.exists() is False


def test_a_batch_runs_from_the_shell(shell: Shell) -> None:
    # Given a row that is too long for the model among others
    source, out = shell.cwd / "in.jsonl", shell.cwd / "out.jsonl"
    source.write_text(
        "\n".join([line("a", "What is a list?"), line("long", "word " * 5000), line("b", "What is a set?")])
    )
    # When
    output = shell.run("batch", "run", str(source), "--out", str(out))
    # Then
    assert "2 / 1" in output
    assert [row["custom_id"] for row in rows(out)] == ["a", "b"]
    (failed,) = rows(shell.cwd / "out.errors.jsonl")
    assert failed["custom_id"] == "long"
    assert failed["response"]["status_code"] == 400  # type: ignore[index]
    assert failed["response"]["body"]["error"]["code"] == "context_length_exceeded"  # type: ignore[index]


def test_the_same_greedy_prompt_has_the_same_answer_in_every_batch(shell: Shell) -> None:
    # Given
    source, out = shell.cwd / "twins.jsonl", shell.cwd / "twins.out.jsonl"
    source.write_text("\n".join(line(f"twin-{index}", "What is a tuple?") for index in range(40)))
    # When
    shell.run("batch", "run", str(source), "--out", str(out))
    # Then
    answers = {row["response"]["body"]["choices"][0]["message"]["content"] for row in rows(out)}  # type: ignore[index]
    assert len(answers) == 1
    assert answers != {""}


def test_a_model_given_on_the_command_line_replaces_that_of_the_rows(shell: Shell) -> None:
    # Given
    source, out = shell.cwd / "other.jsonl", shell.cwd / "other.out.jsonl"
    source.write_text(line("a", "What is é?", model="gpt-nobody"))
    # When
    refused = shell.run("batch", "run", str(source), "--out", str(out), status=1)
    shell.run("batch", "run", str(source), "--out", str(out), "--model", BUILTIN_MODEL)
    # Then
    assert "line 1: model 'gpt-nobody' is not served here" in refused
    assert len(rows(out)) == 1


def test_batches_are_listed_shown_fetched_and_past_cancelling(shell: Shell) -> None:
    # Given
    source, out = shell.cwd / "one.jsonl", shell.cwd / "one.out.jsonl"
    source.write_text(line("a", "What is a dict?"))
    shell.run("batch", "run", str(source), "--out", str(out))
    # When
    newest = shell.run("batch", "ls", "--limit", "1").splitlines()[1]
    batch_id = newest.split()[0]
    # Then
    assert newest.split()[1:6] == ["completed", BUILTIN_MODEL, "1", "0", "1"]
    assert "completed" in shell.run("batch", "show", batch_id)
    out.unlink()
    assert "1 answers" in shell.run("batch", "results", batch_id, "--out", str(out))
    assert len(rows(out)) == 1
    assert "has not ended, got one that is completed" in shell.run("batch", "cancel", batch_id, status=1)


def test_one_question_gets_an_answer(shell: Shell) -> None:
    assert shell.run("chat", "What is a list?", "--max-tokens", "12").strip() != ""


def test_a_server_that_is_not_there_is_a_sentence(shell: Shell) -> None:
    # When
    output = shell.run("batch", "ls", "--url", "http://127.0.0.1:1", status=1)
    # Then
    assert output == (
        "millrace: no Millrace answers at http://127.0.0.1:1: start one with `millrace up`, or name it with --url\n"
    )


def test_a_file_that_is_not_there_is_a_sentence(shell: Shell) -> None:
    output = shell.run("batch", "run", "nowhere.jsonl", "--out", "x.jsonl", status=1)
    assert output == "millrace: cannot read nowhere.jsonl: No such file or directory\n"


def test_the_heavy_worker_runs_a_job_of_the_engine(shell: Shell) -> None:
    # Given a training that finds its model done
    instance = Instance.of(shell.settings)
    app = create_app(Settings(redis_url=broker_url(f"unix://{instance.run_path}/valkey.sock?db=0")))
    directory = str(shell.settings.data_path / "models" / BUILTIN_MODEL)
    # When
    app.send_task(
        TRAIN_BUILTIN_MODEL, kwargs={"directory": directory}, queue=heavy_queue(shell.settings.node_name), retry=False
    )
    # Then
    until(lambda: "succeeded" in instance.log_path("heavy-cpu").read_text())
    app.close()
