"""`millrace demo`: the main job on this machine. Starts everything (or uses a Millrace that runs already), runs the
batch of questions that comes with the project, shows what came out and how fast, and stops what it started.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from openai import OpenAI
from openai.types import Batch
from rich.console import Console

from cli.batch import submit, summary_table
from cli.client import Server, connect, download, get_job, is_ready, server_of
from cli.follow import follow
from cli.local.running import running
from core.errors import ConfigurationError, MillraceError
from core.settings import Settings

NUM_SHOWN = 3
MAX_SHOWN_CHARACTERS = 300


class DemoFailed(MillraceError):
    code = "demo_failed"


def demo(settings: Settings) -> None:
    """Raises DemoFailed when not every row is answered."""
    console = Console()
    questions = questions_path()
    with _millrace(settings, console) as server, connect(server) as client:
        console.print(f"\nRunning {questions.name} as a batch of {_count_lines(questions)} requests")
        batch = follow(client, submit(client, questions, None).id, console)
        answers = settings.data_path / "demo" / "answers.jsonl"
        answers.parent.mkdir(parents=True, exist_ok=True)
        download(client, batch.output_file_id, answers)
        _show(client, server, batch, questions, answers, console)
    if batch.status != "completed" or batch.request_counts is None or batch.request_counts.failed:
        raise DemoFailed(f"expected every row to be answered; the batch is {batch.status}: {batch.request_counts}")


def questions_path() -> Path:
    """In an installed wheel beside this module, in a checkout under `examples/`."""
    here = Path(__file__).resolve().parent
    for path in (here / "questions.jsonl", here.parent / "examples" / "questions.jsonl"):
        if path.exists():
            return path
    raise ConfigurationError("the questions of the demo are missing: install Millrace again")


def _count_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())


@contextmanager
def _millrace(settings: Settings, console: Console) -> Iterator[Server]:
    server = server_of(settings, None)
    if is_ready(server):
        console.print(f"Using the Millrace that runs at {server.url}")
        yield server
        return
    with running(_on_free_ports(settings)) as started:
        yield replace(server_of(settings, None), url=started.url)  # its key was made by the first start


def _on_free_ports(settings: Settings) -> Settings:
    """The usual ports, or others where somebody else has them: nobody needs to know the demo's."""
    port = _free_port(settings.host, settings.port)
    flower_port = _free_port(settings.host, settings.flower_port)
    return msgspec.structs.replace(settings, port=port, flower_port=flower_port)


def _free_port(host: str, wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError(f"no free port on {host}")


def _show(client: OpenAI, server: Server, batch: Batch, questions: Path, answers: Path, console: Console) -> None:
    console.print(summary_table(batch, get_job(server, batch.id)))
    console.print(f"\n  All answers are in {answers}\n", highlight=False, soft_wrap=True)
    asked = {row["custom_id"]: row["body"]["messages"][-1]["content"] for row in _rows(questions)}
    for row in list(_rows(answers))[:NUM_SHOWN]:
        answer = row["response"]["body"]["choices"][0]["message"]["content"]
        console.print(f"  Q: {_short(asked[row['custom_id']])}", markup=False, highlight=False)
        console.print(f"  A: {_short(answer)}\n", markup=False, highlight=False)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN_CHARACTERS else line[:MAX_SHOWN_CHARACTERS] + " …"
