"""Coming back to an answer: the events behind the last one that the client has. Whoever only reads along ends nothing,
neither by leaving nor by what they claim to have: the request is of the client that made it.
"""

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from api.context import Context
from api.openai.online import lifetime, narrate
from api.streaming.response import AnswerStream, Ending
from core.access import Identity, Scope
from core.errors import NotFound
from core.job import ServiceClass
from core.openai.completion import CompletionRequest, parse_body
from db import jobs, online
from db.tables import JobRow

PREFIXES = ("chatcmpl-", "cmpl-")
EVENT_ID_HEADER = "last-event-id"


async def resume(context: Context, who: Identity, request: Request, endpoint: str, answer_id: str) -> Response:
    """Raises NotFound where the tenant has no such answer, InvalidRequest where the event is none of it."""
    job, parsed = await run_in_threadpool(_find, context, who, endpoint, answer_id)
    last_event_id = request.headers.get(EVENT_ID_HEADER) or request.query_params.get("last_event_id")
    narrator = narrate(job, parsed, last_event_id)
    return AnswerStream(context, job, narrator, Ending(left=_nothing, failed=_nothing))


def _find(context: Context, who: Identity, endpoint: str, answer_id: str) -> tuple[JobRow, CompletionRequest]:
    """The job goes on for as long as a new one would, for those who may make new ones."""
    prefix = next((prefix for prefix in PREFIXES if answer_id.startswith(prefix)), "")
    public_id = answer_id.removeprefix(prefix).partition("-")[0]
    with context.database.begin() as session:
        job = jobs.find(session, public_id, tenant=who.tenant)
        if job.service_class != ServiceClass.ONLINE or job.endpoint != endpoint:
            raise NotFound(f"no answer of {endpoint} with id {answer_id!r}", param="id")
        parsed = parse_body(endpoint, online.first_body(session, job).encode())
        if Scope.SUBMIT in who.scopes:
            online.set_expiry(session, job, lifetime(context))
    return job, parsed


async def _nothing() -> None:
    return
