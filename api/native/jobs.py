"""`/api/v1/jobs`: jobs of every kind, with the measurements that OpenAI's objects have no place for."""

from typing import Any

from fastapi import APIRouter

from api.context import Ctx, Tenant
from core.job import TERMINAL_JOB_STATES, JobState
from db import jobs
from db.jobs import Progress
from db.tables import JobRow

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])


@router.get("/{job_id}", summary="Show a job with its progress and latencies")
def get_job(context: Ctx, tenant: Tenant, job_id: str) -> dict[str, Any]:
    with context.database.begin() as session:
        job = jobs.find(session, job_id, tenant=tenant)
        is_running = JobState(job.state) not in TERMINAL_JOB_STATES
        progress = jobs.progress(session, [job.id]).get(job.id) if is_running else None
        return job_object(job, progress, jobs.latencies(session, job))


def job_object(job: JobRow, progress: Progress | None, latencies: dict[str, float]) -> dict[str, Any]:
    """`latencies`: seconds; `ttft_…` from the arrival at the engine, `wall_seconds` from the first request's arrival
    there to the last answer."""
    counts = progress or job
    return {
        "id": job.public_id,
        "kind": job.kind,
        "service_class": job.service_class,
        "state": job.state,
        "model": job.model,
        "priority": job.priority,
        "created_at": job.created_at.isoformat(),
        "num_requests": job.num_requests,
        "num_completed": counts.num_completed,
        "num_failed": counts.num_failed,
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "latencies": latencies,
    }
