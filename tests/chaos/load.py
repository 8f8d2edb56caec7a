"""What Millrace is asked to do meanwhile: the large batch, small batches of a second tenant one after another, and
people who ask online. Whoever asks bears that nobody answers; a wrong answer is remembered."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import httpx
from openai import OpenAI

from core.errors import MillraceError, Unavailable
from core.job import TERMINAL_JOB_STATES, JobState
from core.openai.completion import CHAT_ENDPOINT
from core.settings import Settings
from db import files, jobs
from db.connection import Database
from db.files import PostgresFiles, new_file_id
from db.jobs import NewBatch
from db.tables import FileRow
from tasks.factory import create_app
from tasks.messages import Messages
from tests.null_answers import answer_to, chat_rows, encode, expected_answer

NEIGHBOUR = "neighbour"
NEIGHBOUR_ROWS = 100
PRIORITIES = (5, 9)
PATIENCE_SECONDS = 20.0
PAUSE_SECONDS = 0.5


def submit(url: str, rows: list[dict[str, object]], metadata: dict[str, str] | None = None) -> str:
    """Through the front door. Returns the id of the batch."""
    with OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        file = client.files.create(file=("in.jsonl", encode(rows)), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
        )
        return batch.id


class Loop:
    """Calls `step` again and again on a thread until `close`."""

    def __init__(self, name: str, step: Callable[[], None]) -> None:
        self._step = step
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closing.wait(PAUSE_SECONDS):
            self._step()


@dataclass
class Asker:
    """Asks one question after another. refused: why there was no answer, and how often."""

    url: str
    model: str
    num_answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def step(self) -> None:
        question = f"online {self.num_answered + self.refused.total()}"
        messages = [{"role": "user", "content": question}]
        try:
            answer = httpx.post(
                f"{self.url}{CHAT_ENDPOINT}",
                json={"model": self.model, "messages": messages},
                timeout=PATIENCE_SECONDS,
            )
        except httpx.HTTPError as error:
            self.refused[type(error).__name__] += 1
            return
        if not answer.is_success:
            self.refused[f"{answer.status_code} {answer.json()['error']['code']}"] += 1
            return
        self.num_answered += 1
        text = answer.json()["choices"][0]["message"]["content"]
        if text != answer_to(messages):
            self.wrong.append(f"{question}: {text}")


class Neighbour:
    """A second tenant: a small batch of any priority, and the next when that has ended, written as the API would."""

    def __init__(self, settings: Settings, model: str, seed: int) -> None:
        assert settings.database_url is not None
        self._database = Database(settings.database_url, pool_size=1)
        self._messages = Messages(create_app(settings))
        self._model = model
        self._chance = random.Random(seed)
        self._current: str | None = None
        self.expected: dict[str, dict[str, str]] = {}  # by job

    def step(self) -> None:
        try:
            if self._current is None or self._has_ended(self._current):
                self._current = self._submit()
        except MillraceError:
            return

    def close(self) -> None:
        self._database.close()

    def _has_ended(self, public_id: str) -> bool:
        with self._database.begin() as session:
            return JobState(jobs.find(session, public_id, tenant=NEIGHBOUR).state) in TERMINAL_JOB_STATES

    def _submit(self) -> str:
        rows = chat_rows(NEIGHBOUR_ROWS, self._model, f"neighbour {self._chance.random()}")
        file_id = new_file_id()
        num_bytes = PostgresFiles(self._database).write(file_id, [encode(rows)])
        batch = NewBatch(
            endpoint=CHAT_ENDPOINT,
            input_file_id=file_id,
            completion_window="24h",
            expires_after=timedelta(hours=24),
            tenant=NEIGHBOUR,
            priority=self._chance.choice(PRIORITIES),
        )
        with self._database.begin() as session:
            files.add(
                session,
                FileRow(id=file_id, tenant=NEIGHBOUR, purpose="batch", filename="in.jsonl", num_bytes=num_bytes),
            )
            public_id = jobs.create_batch(session, batch).public_id
            # remembered before the commit: should that be lost on its way back, the check finds out which it was
            self.expected[public_id] = {str(row["custom_id"]): expected_answer(row) for row in rows}
        try:
            self._messages.validate_batch(public_id)
        except Unavailable:
            return public_id  # the reconciler sends it
        return public_id


def is_there(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0).is_success
    except httpx.HTTPError:
        return False
