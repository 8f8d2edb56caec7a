"""Nodes that differ in the length of their leases, beside one database, one broker and one `control` worker with its
beat. Each node is an engine that computes nothing and a batch worker, made as a `millrace node` makes them, with a
model of its own, whose rows last as long as anybody looks.

Supervisors run in this process, and only while somebody waits: all waiting goes through `Nodes.wait`.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
from sqlalchemy import text

from benchmarks.sandbox import settings_in
from cli.local.servers import embedded_servers
from cli.local.up import beat_part, migrate
from core.chunks import Cut
from core.job import JobKind, JobState, ServiceClass
from core.settings import Settings
from db.connection import Database
from db.intake import add_chunks
from db.tables import JobRow
from workers.agent import CPU_BATCH_THREADS, device_workers, engine_part, node_devices, node_parts, register
from workers.instance import Instance
from workers.supervisor import Supervisor

ROW_SECONDS = 2.0  # so that a worker has something to write now and then
CHUNK_ROWS = 10_000
TICK_SECONDS = 0.02
START_SECONDS = 90.0

_REQUESTS = text("""
INSERT INTO requests (job_id, index, custom_id, body)
SELECT :job_id, n, 'row-' || n, json_build_object('model', CAST(:model AS text), 'messages',
    json_build_array(json_build_object('role', 'user', 'content', 'question ' || n)))::text
FROM generate_series(0, :num_rows - 1) AS n
""")


class Nodes:
    """Raises what a supervisor raises when a part cannot be started."""

    def __init__(self, root: Path, lease_lengths: Sequence[int]) -> None:
        names = [node_name(seconds) for seconds in lease_lengths]
        models = {name: f"{name}=null:{ROW_SECONDS:g}" for name in names}
        base = settings_in(root, ",".join(models.values()))
        # its reconciler has to believe the longest leases
        self.settings = msgspec.structs.replace(base, lease_seconds=float(max(lease_lengths)))
        self._root = root
        self._models = models
        self._lengths = dict(zip(names, lease_lengths, strict=True))
        self._supervisors: list[tuple[Supervisor, Instance]] = []

    def start(self) -> None:
        servers = self._supervise(self.settings)
        self.settings, parts = embedded_servers(self.settings, say)
        servers.launch(parts)
        servers.wait_ready()
        migrate(self.settings)
        control = [part for part in node_parts(self.settings) if part.name == "control"]
        servers.launch([*control, beat_part(self.settings)])
        servers.wait_ready()

    def start_nodes(self, database: Database) -> None:
        for name, seconds in self._lengths.items():
            own = self._own_settings(name, seconds)
            supervisor = self._supervise(own)
            device = node_devices(own)[0]
            register(own, database)
            hand_over(database, name)
            workers = device_workers(own, device, ())
            supervisor.launch([engine_part(own, device, ()), *(one for one in workers if one.name.startswith("batch"))])
        for supervisor, _ in self._supervisors:
            supervisor.wait_ready()

    def stop(self) -> None:
        for supervisor, instance in reversed(self._supervisors):
            supervisor.stop_all()
            instance.clear()

    def wait(self, holds: Callable[[], bool], seconds: float = START_SECONDS) -> bool:
        """Until `holds` says so, or for so long. Whoever dies meanwhile is started again."""
        deadline = time.monotonic() + seconds
        while not (is_over := holds()) and time.monotonic() < deadline:
            for supervisor, _ in self._supervisors:
                supervisor.tick()
            time.sleep(TICK_SECONDS)
        return is_over

    def worker(self, name: str) -> psutil.Process | None:
        """The batch worker of a node; None while there is none."""
        return self._child(f"batch-cpu@{name}")

    def postgresql(self) -> psutil.Process | None:
        return self._child("bin/postgres")

    def _child(self, word: str) -> psutil.Process | None:
        for child in psutil.Process().children():
            if child.status() != psutil.STATUS_ZOMBIE and any(word in part for part in child.cmdline()):
                return child
        return None

    def _own_settings(self, name: str, seconds: int) -> Settings:
        return msgspec.structs.replace(
            self.settings,
            data_dir=str(self._root / name),
            node_name=name,
            devices="cpu",
            models=self._models[name],
            lease_seconds=float(seconds),
        )

    def _supervise(self, settings: Settings) -> Supervisor:
        instance = Instance.of(settings)
        instance.prepare()
        supervisor = Supervisor(instance, say)
        self._supervisors.append((supervisor, instance))
        return supervisor


@contextmanager
def running_nodes(root: Path, lease_lengths: Sequence[int]) -> Iterator[Nodes]:
    """Servers, `control` and beat; `start_nodes` starts the rest."""
    nodes = Nodes(root, lease_lengths)
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()


def node_name(lease_seconds: int) -> str:
    return f"lease-{lease_seconds}"


def hand_over(database: Database, model: str) -> None:
    """As many long chunks as a worker runs at once, and nothing that waits behind them."""
    num_rows = CPU_BATCH_THREADS * CHUNK_ROWS
    job = JobRow(
        public_id=f"batch_{model}",
        kind=JobKind.INFERENCE.value,
        service_class=ServiceClass.BATCH.value,
        state=JobState.IN_PROGRESS.value,
        endpoint="/v1/chat/completions",
        model=model,
        num_requests=num_rows,
    )
    cuts = [Cut(number * CHUNK_ROWS, CHUNK_ROWS, CHUNK_ROWS) for number in range(CPU_BATCH_THREADS)]
    with database.begin() as session:
        session.add(job)
        session.flush()
        session.refresh(job)
        session.execute(_REQUESTS, {"job_id": job.id, "model": model, "num_rows": num_rows})
        add_chunks(session, job, model, cuts)


def say(line: str) -> None:
    print(line, file=sys.stderr)
