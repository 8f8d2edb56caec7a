"""The page at `/`, for whoever watches over the night: what waits and runs and how fast, the devices and what their
engines say, the newest jobs with their progress and what went wrong, and how to submit one."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from starlette.templating import Jinja2Templates

from api.access.scopes import READ
from api.context import Ctx, Who
from api.native.objects import Job, has_ended, job_object
from api.native.queues import queue_objects
from core.access import Scope, is_loopback
from db import jobs
from db.native import heavy, listing, nodes
from db.native.listing import JobFilter

router = APIRouter(include_in_schema=False)

NUM_JOBS = 20
SILENT_SECONDS = 60.0  # twice what a worker lets pass between two signs of life
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_templates = Jinja2Templates(Path(__file__).resolve().parent / "templates")


@router.get("/", response_class=HTMLResponse, dependencies=[READ])
def home(context: Ctx, who: Who, request: Request) -> HTMLResponse:
    """Devices, and the work of other tenants, are for those who run the place."""
    is_admin = Scope.ADMIN in who.scopes
    with context.database.begin() as session:
        newest = listing.list_jobs(session, JobFilter(limit=NUM_JOBS), tenant=who.tenant)
        counts = jobs.progress(session, [job.id for job in newest if not has_ended(job)])
        said = heavy.progress(session, [job.id for job in newest])
        values: dict[str, object] = {
            "queues": queue_objects(
                session,
                tenant=None if is_admin else who.tenant,
                max_waiting=context.settings.max_waiting_requests,
            ),
            "devices": nodes.list_devices(session) if is_admin else None,
        }
    shown = [job_object(job, counts.get(job.id), said=said.get(job.id)) for job in newest]
    values |= {
        "version": request.app.version,
        "base_url": str(request.base_url),
        "flower_url": flower_url(request.url.hostname or "", context.settings.flower_port),
        "sample_key": "unused" if who.key_id is None else "mr_…",
        "jobs": shown,
        "problems": {job.id: problem for job in shown if (problem := problem_of(job))},
        "silent_seconds": SILENT_SECONDS,
        "duration": duration,
        "rate": rate,
    }
    return _templates.TemplateResponse(request, "home.html", values)


def duration(seconds: float) -> str:
    """In the largest unit of which there are two or more."""
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.0f} s"


def rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def flower_url(host: str, port: int) -> str | None:
    """None where whoever reads the page cannot reach it: it listens on loopback alone."""
    return f"http://{host}:{port}" if is_loopback(host) else None


def problem_of(job: Job) -> str:
    """What went wrong with a job, in a line; empty where nothing did."""
    errors = (job.errors or {}).get("data") or []
    if errors:
        return str(errors[0]["message"])
    return f"{job.num_failed:,} of {job.num_requests:,} rows failed" if job.num_failed else ""
