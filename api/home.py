"""The page at `/`: which models are served, how the newest batches do, and how to submit one."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from starlette.templating import Jinja2Templates

from api.access.scopes import READ
from api.context import Ctx, Tenant
from db import jobs, models
from db.jobs import Progress
from db.tables import JobRow

router = APIRouter(include_in_schema=False)

NUM_BATCHES = 20
_templates = Jinja2Templates(Path(__file__).resolve().parent / "templates")


@dataclass(frozen=True, slots=True)
class BatchLine:
    id: str
    state: str
    model: str | None
    num_requests: int
    num_completed: int
    num_failed: int
    completion_tokens: int
    created_at: datetime


@router.get("/", response_class=HTMLResponse, dependencies=[READ])
def home(context: Ctx, tenant: Tenant, request: Request) -> HTMLResponse:
    with context.database.begin() as session:
        served = models.list_served(session)
        newest = jobs.list_batches(session, tenant=tenant, after=None, limit=NUM_BATCHES)
        progress = jobs.progress(session, [job.id for job in newest])
    values = {
        "version": request.app.version,
        "base_url": str(request.base_url),
        "flower_url": f"http://{request.url.hostname}:{context.settings.flower_port}",
        "models": served,
        "batches": [_line(job, progress.get(job.id)) for job in newest],
    }
    return _templates.TemplateResponse(request, "home.html", values)


def _line(job: JobRow, progress: Progress | None) -> BatchLine:
    counts = progress or job
    return BatchLine(
        job.public_id,
        job.state,
        job.model,
        job.num_requests,
        counts.num_completed,
        counts.num_failed,
        counts.completion_tokens,
        job.created_at,
    )
