"""Coming back to an answer: the events behind the last one that the client has."""

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from api.context import Context
from api.openai.online import cancel, let_go, lifetime, narrate
from api.streaming.response import AnswerStream, Ending
from core.errors import NotFound
from core.job import ServiceClass
from core.openai.completion import CompletionRequest, parse_body
from db import jobs, online
from db.tables import JobRow

PREFIXES = ("chatcmpl-", "cmpl-")
EVENT_ID_HEADER = "last-event-id"


async def resume(context: Context, tenant: str, request: Request, endpoint: str, answer_id: str) -> Response:
    """Raises NotFound where the tenant has no such answer, InvalidRequest where the event is none of it."""
    job, parsed = await run_in_threadpool(_find, context, tenant, endpoint, answer_id)
    last_event_id = request.headers.get(EVENT_ID_HEADER) or request.query_params.get("last_event_id")
    narrator = narrate(job, parsed, last_event_id)
    return AnswerStream(context, job, narrator, _ending(context, job, parsed))


def _find(context: Context, tenant: str, endpoint: str, answer_id: str) -> tuple[JobRow, CompletionRequest]:
    """The job goes on for as long as a new one would."""
    prefix = next((prefix for prefix in PREFIXES if answer_id.startswith(prefix)), "")
    public_id = answer_id.removeprefix(prefix).partition("-")[0]
    with context.database.begin() as session:
        job = jobs.find(session, public_id, tenant=tenant)
        if job.service_class != ServiceClass.ONLINE or job.endpoint != endpoint:
            raise NotFound(f"no answer of {endpoint} with id {answer_id!r}", param="id")
        parsed = parse_body(endpoint, online.first_body(session, job).encode())
        online.set_expiry(session, job, lifetime(context))
    return job, parsed


def _ending(context: Context, job: JobRow, parsed: CompletionRequest) -> Ending:
    """Who only reads along ends nothing by leaving, unless the request says how long it waits for readers."""

    async def left() -> None:
        if parsed.streaming and parsed.streaming.resume_seconds:
            await run_in_threadpool(let_go, context, job, parsed)

    async def failed() -> None:
        await run_in_threadpool(cancel, context, job)

    return Ending(left, failed)
