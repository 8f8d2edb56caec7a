"""`/api/v1/jobs`: jobs of every kind: submit, list, show, change, end and remove; and their results."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response, status
from starlette.concurrency import run_in_threadpool

from api.access.scopes import READ, SUBMIT
from api.context import ADMIT_JOB, Context, Ctx, Tenant, Who, page
from api.contract.document import schema_body
from api.idempotency import Once
from api.native import heavy_work, inference
from api.native.bodies import AnyJob, InferenceBody, JobPatch
from api.native.bodies.reading import job_schema, read_job
from api.native.objects import Deleted, Job, JobPage, described, has_ended, job_object
from api.openai.online import check_content_type
from core.access import Identity
from core.errors import InvalidRequest
from core.job import JobKind, JobState, ServiceClass
from db import jobs
from db.idempotency import Key
from db.native import heavy, listing, removal, submission
from db.native.listing import JobFilter
from db.native.submission import JobChange
from db.tables import JobRow

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

PAGE_JOBS, MOST_JOBS = 20, 100
PAGE_RESULTS, MOST_RESULTS = 1000, 10_000
PAGE_BYTES = 16_000_000  # of answers; the page ends behind the one that exceeds it
JSON_LINES = "application/jsonl"


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    summary="Submit a job",
    openapi_extra=schema_body(job_schema()),
    dependencies=[SUBMIT, ADMIT_JOB],
)
async def create_job(context: Ctx, who: Who, request: Request, once: Once) -> Job:
    """Of any kind; `kind` says which. Requests are checked before anything is kept; the answer shows the job as it was
    accepted. A priority above the key's is lowered to it."""
    check_content_type(request)
    body = await to_thread.run_sync(read_job, await request.body(), limiter=context.body_readers)
    return await run_in_threadpool(_create, context, who, body, once)


def _create(context: Context, who: Identity, body: AnyJob, once: Key | None) -> Job:
    body.priority = min(body.priority, who.max_priority)
    if isinstance(body, InferenceBody):
        return job_object(inference.submit(context, who, body, once))
    return _shown(context, heavy_work.submit(context, who, body, once))


def _shown(context: Context, job: JobRow) -> Job:
    with context.database.begin() as session:
        return described(session, job)


@router.get("", summary="List jobs, newest first", dependencies=[READ])
def list_jobs(
    context: Ctx,
    tenant: Tenant,
    kind: JobKind | None = None,
    state: JobState | None = None,
    model: str | None = None,
    service_class: ServiceClass | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_JOBS)] = PAGE_JOBS,
) -> JobPage:
    """Online requests, each of which is a job, are left out unless `service_class=online` asks for them. `after`: the
    `last_id` of the page before."""
    wanted = JobFilter(
        kind=kind and kind.value,
        state=state and state.value,
        model=model,
        service_class=service_class and service_class.value,
        after=after,
        limit=limit + 1,
    )
    with context.database.begin() as session:
        rows = listing.list_jobs(session, wanted, tenant=tenant)
        counts = jobs.progress(session, [row.id for row in rows if not has_ended(row)])
        progress = heavy.progress(session, [row.id for row in rows])
    objects = [job_object(row, counts.get(row.id), said=progress.get(row.id)).model_dump() for row in rows]
    return JobPage.model_validate(page(objects, limit))


@router.get("/{job_id}", summary="Show a job with its progress, latencies and result", dependencies=[READ])
def get_job(context: Ctx, tenant: Tenant, job_id: str) -> Job:
    with context.database.begin() as session:
        return described(session, jobs.find(session, job_id, tenant=tenant))


@router.patch("/{job_id}", summary="Change a job's priority, deadline or metadata", dependencies=[SUBMIT])
def change_job(context: Ctx, who: Who, job_id: str, body: JobPatch) -> Job:
    """A new priority holds for what has not started. 409 when the job has ended."""
    priority = None if body.priority is None else min(body.priority, who.max_priority)
    change = JobChange(priority=priority, deadline=body.deadline, user_metadata=body.metadata)
    with context.database.begin() as session:
        job = jobs.find(session, job_id, tenant=who.tenant)
        submission.change(session, job, change)
        return described(session, job)


@router.delete(
    "/{job_id}",
    summary="Cancel a job that runs; remove one that has ended",
    responses={status.HTTP_202_ACCEPTED: {"model": Job, "description": "It is being cancelled"}},
    dependencies=[SUBMIT],
)
def delete_job(context: Ctx, tenant: Tenant, job_id: str, response: Response) -> Job | Deleted:
    """A job that has not ended is cancelled (202; what is finished is kept). One that has is removed, with its requests
    and outcomes; its files stay."""
    with context.database.begin() as session:
        job = jobs.find(session, job_id, tenant=tenant)
        if has_ended(job):
            removal.remove(session, job)
            return Deleted(id=job.public_id)
        jobs.stop(session, job, JobState.CANCELLED)
        session.refresh(job)
        counts = jobs.progress(session, [job.id]).get(job.id)
    context.broker.end_if_idle(job, counts)
    response.status_code = status.HTTP_202_ACCEPTED
    return job_object(job, counts)


@router.get(
    "/{job_id}/results",
    summary="Read the outcomes of an inference job, page by page",
    response_class=Response,
    responses={200: {"content": {JSON_LINES: {}}, "description": "JSON lines, as in a batch's output file"}},
    dependencies=[READ],
)
def get_results(
    context: Ctx,
    tenant: Tenant,
    job_id: str,
    after: Annotated[int, Query(ge=-1)] = -1,
    limit: Annotated[int, Query(ge=1, le=MOST_RESULTS)] = PAGE_RESULTS,
) -> Response:
    """In order of the requests, successes and failures alike. `x-next-after` is what `after` must be for the next
    page; without it there is none. A page may be shorter than `limit`, since it ends after 16 MB. While the job runs
    (`x-job-state`), these are the outcomes there are by now: rows that end later may have smaller indices."""
    with context.database.begin() as session:
        job = jobs.find(session, job_id, tenant=tenant)
        if job.kind != JobKind.INFERENCE:
            raise InvalidRequest(f"expected an inference job, got one of {job.kind}; GET it to read its result")
        found = listing.results(session, job, after=after, limit=limit, max_bytes=PAGE_BYTES)
    headers = {"x-job-state": job.state}
    if found.next_after is not None:
        headers["x-next-after"] = str(found.next_after)
    return Response("".join(found.lines), media_type=JSON_LINES, headers=headers)
