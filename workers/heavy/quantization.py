"""Quantization: a model of this node becomes an artifact beside it, made by a process with torch. The directory is
named after the job, so that a job that runs again finds what an earlier attempt completed."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from core.heavy import Quantization
from core.job import JobKind
from db.tables import ArtifactRow
from workers.heavy.child import run_engine_job
from workers.heavy.work import Result, Talk, Task


class QuantizationWork:
    """sources: model name -> directory or hub name."""

    def __init__(self, sources: Mapping[str, str], directory: Path, node: str) -> None:
        self._sources = sources
        self._directory = directory
        self._node = node

    def __call__(self, task: Task, talk: Talk) -> Result:
        wanted = msgspec.json.decode(task.parameters, type=Quantization)
        out = self._directory / task.job_public_id
        source = self._sources[task.model]
        figures = run_engine_job(["quantize", "--model", source, "--method", wanted.method, "--out", str(out)], talk)
        result = {**figures, "artifact": wanted.name, "directory": str(out), "node": self._node}
        return Result(result, self._artifact(task, wanted, out, result))

    def _artifact(self, task: Task, wanted: Quantization, out: Path, details: Mapping[str, object]) -> ArtifactRow:
        return ArtifactRow(
            id=f"art_{task.job_public_id.removeprefix('job_')}",
            tenant=task.tenant,
            name=wanted.name,
            kind=JobKind.QUANTIZATION.value,
            source_model=task.model,
            node=self._node,
            directory=str(out),
            num_bytes=int(str(details["bytes_after"])),
            job_public_id=task.job_public_id,
            details=dict(details),
        )
