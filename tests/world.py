"""The services of a worker over the real PostgreSQL and Valkey, and shorthands for what tests put into them."""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec
import pytest
from redis import Redis

from core.job import DEFAULT_PRIORITY, DEFAULT_TENANT, ServiceClass
from core.openai.completion import CHAT_ENDPOINT
from core.redis_url import client_url
from core.settings import Settings
from db import chunks, files, jobs, models
from db.chunks import Lease, Outcome
from db.connection import Database
from db.files import PostgresFiles, new_file_id
from db.jobs import NewBatch
from db.tables import FileRow, JobRow
from tasks import services as installed
from tasks.factory import create_app
from tasks.messages import Messages
from tasks.relay import RedisRelay
from tasks.services import ChunkRunner, Services
from tasks.upkeep.intake import validate

MODEL = "test/model"


@dataclass
class World:
    services: Services
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def database(self) -> Database:
        return self.services.database

    def upload(self, content: bytes, *, purpose: str = "batch", tenant: str = DEFAULT_TENANT) -> str:
        file_id = new_file_id()
        num_bytes = self.services.files.write(file_id, [content])
        with self.database.begin() as session:
            files.add(
                session,
                FileRow(id=file_id, tenant=tenant, purpose=purpose, filename="in.jsonl", num_bytes=num_bytes),
            )
        return file_id

    def submit(
        self,
        content: bytes,
        *,
        endpoint: str = CHAT_ENDPOINT,
        window: timedelta = timedelta(hours=24),
        tenant: str = DEFAULT_TENANT,
        priority: int = DEFAULT_PRIORITY,
    ) -> JobRow:
        """A batch that waits for its validation."""
        batch = NewBatch(
            endpoint=endpoint,
            input_file_id=self.upload(content, tenant=tenant),
            completion_window="24h",
            expires_after=window,
            tenant=tenant,
            priority=priority,
        )
        with self.database.begin() as session:
            return jobs.create_batch(session, batch)

    def start_job(self, num_requests: int, **named: object) -> JobRow:
        """A validated batch of so many requests; `named`: as of `submit`."""
        return self.start(batch_file(range(num_requests)), **named)

    def start(self, content: bytes, **named: object) -> JobRow:
        """A validated batch; `named`: as of `submit`."""
        job = self.submit(content, **named)  # type: ignore[arg-type]
        assert validate(self.services, job.public_id)
        return self.job(job.public_id, tenant=job.tenant)

    def job(self, public_id: str, tenant: str = DEFAULT_TENANT) -> JobRow:
        with self.database.begin() as session:
            return jobs.find(session, public_id, tenant=tenant)

    def claim(
        self, owner: str = "worker-a", lease_seconds: float = 60.0, *, takes_oldest: bool = False
    ) -> Lease | None:
        with self.database.begin() as session:
            return chunks.claim(
                session,
                owner=owner,
                service_class=ServiceClass.BATCH.value,
                models=[MODEL],
                lease_seconds=lease_seconds,
                takes_oldest=takes_oldest,
            )

    def write(self, lease: Lease, outcomes: Sequence[Outcome] = ()) -> chunks.WriteResult:
        with self.database.begin() as session:
            return chunks.write(session, lease, outcomes)

    def unfinished(self, lease: Lease) -> list[int]:
        with self.database.begin() as session:
            return [request.index for request in chunks.unfinished(session, lease)]

    def read_lines(self, file_id: str | None) -> list[dict[str, object]]:
        assert file_id is not None
        content = b"".join(self.services.files.read(file_id))
        return [json.loads(line) for line in content.splitlines()]

    def with_runner(self, runner: ChunkRunner) -> "World":
        services = Services(
            settings=self.services.settings,
            database=self.services.database,
            files=self.services.files,
            redis=self.services.redis,
            messages=self.services.messages,
            relay=self.services.relay,
            chunks=runner,
        )
        installed.install(services)
        return World(services)


def chat_line(custom_id: str, content: str = "What is a list?", *, model: str = MODEL, **body: object) -> bytes:
    row = {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT_ENDPOINT,
        "body": {"model": model, "messages": [{"role": "user", "content": content}], **body},
    }
    return json.dumps(row).encode()


def batch_file(names: Sequence[object] | range) -> bytes:
    return b"".join(chat_line(f"row-{name}", f"question {name}") + b"\n" for name in names)


def success(index: int, text: str = "an answer", completion_tokens: int = 2) -> Outcome:
    body = json.dumps({"answer": text})
    return Outcome(index, 200, body, prompt_tokens=3, completion_tokens=completion_tokens)


def failure(index: int) -> Outcome:
    return Outcome(index, 400, json.dumps({"error": {"code": "context_length_exceeded"}}))


@pytest.fixture
def settings(database: str, redis_url: str) -> Settings:
    return Settings(database_url=database, redis_url=redis_url, models=MODEL, chunk_rows=10, auth="local")


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    assert settings.database_url is not None
    assert settings.redis_url is not None
    database = Database(settings.database_url)
    redis: Redis = Redis.from_url(client_url(settings.redis_url))
    services = Services(
        settings=settings,
        database=database,
        files=PostgresFiles(database),
        redis=redis,
        messages=Messages(create_app(settings)),
        relay=RedisRelay(redis),
    )
    with database.begin() as session:
        models.place(session, node="node", devices=["cpu"], sources={MODEL: "null:"})
    installed.install(services)
    yield World(services)
    installed.uninstall()


def changed(settings: Settings, **values: object) -> Settings:
    return msgspec.structs.replace(settings, **values)
