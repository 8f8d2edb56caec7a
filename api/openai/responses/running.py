"""Making a response and looking at it: an online job of one chat completion, and a row that says what was asked.

A response in the background goes on by itself, for a day at most. One that is waited for ends when whoever waits
leaves, unless the call had an Idempotency-Key and may come again.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy.orm import Session

from api.access.admission import estimated_tokens
from api.access.visit import Visit
from api.context import Context
from api.openai.online import lifetime
from api.prompts import count_prompt_tokens
from core.access import Identity
from core.errors import InvalidRequest
from core.job import DEFAULT_PRIORITY, JobState
from core.openai.completion import CHAT_ENDPOINT, parse_body
from core.openai.responses.items import Item, output_items
from core.openai.responses.request import ResponseRequest
from core.openai.responses.response import SUCCESS, Beginning, Status, answered, failed, unfinished
from db import idempotency, jobs, responses
from db.idempotency import Key
from db.jobs import NewOnlineRequest
from db.responses import StoredResponse
from db.tables import JobRow, ResponseRow

BACKGROUND_LIFETIME = timedelta(hours=24)

_items = msgspec.json.Decoder(list[Item])
_echo = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Made:
    """is_new: false where an earlier call with the same Idempotency-Key made it."""

    response: StoredResponse
    is_new: bool


def make(context: Context, visit: Visit, request: ResponseRequest, once: Key | None) -> Made:
    """Raises InvalidRequest, NotFound, and what `Admission` raises."""
    tenant = visit.identity.tenant
    with context.database.begin() as session:
        earlier = idempotency.recall(session, once)
        if earlier is not None:
            return Made(responses.find(session, earlier, tenant=tenant, is_stored=False), is_new=False)
        body = request.chat_body(_earlier_items(session, tenant, request.previous_id))
    context.served.check(CHAT_ENDPOINT, request.model)
    parsed = parse_body(CHAT_ENDPOINT, body)
    context.admission.take_request(visit)
    context.admission.check_room(visit, request.model)
    num_prompt_tokens = count_prompt_tokens(context, request.model, parsed)
    num_tokens = estimated_tokens(num_prompt_tokens, len(body), [parsed])
    context.admission.admit_online(visit, request.model, num_tokens)
    with context.database.begin() as session:
        earlier = idempotency.recall(session, once)  # again: somebody may have been quicker
        if earlier is not None:
            context.admission.give_back(visit)
            return Made(responses.find(session, earlier, tenant=tenant, is_stored=False), is_new=False)
        context.admission.check_online(session, visit)
        job = jobs.create_online(session, _job(context, visit.identity, request, body))
        visit.job_id = job.id
        row = responses.add(session, _row(tenant, request, job))
        idempotency.remember(session, once, row.id)
        session.refresh(job)
        return Made(StoredResponse(row, job, None, is_running=False), is_new=True)


def _job(context: Context, who: Identity, request: ResponseRequest, body: bytes) -> NewOnlineRequest:
    return NewOnlineRequest(
        endpoint=CHAT_ENDPOINT,
        model=request.model,
        body=body.decode(),
        expires_after=BACKGROUND_LIFETIME if request.is_background else lifetime(context),
        tenant=who.tenant,
        key_id=who.key_id,
        priority=min(DEFAULT_PRIORITY, who.max_priority),
    )


def _row(tenant: str, request: ResponseRequest, job: JobRow) -> ResponseRow:
    return ResponseRow(
        id=f"resp_{secrets.token_hex(24)}",
        tenant=tenant,
        job_id=job.id,
        previous_id=request.previous_id,
        is_stored=request.is_stored,
        has_tools=request.has_tools,
        is_streamed=request.is_streamed,
        items=msgspec.json.encode(request.items).decode(),
        echo=msgspec.json.encode(request.echo).decode(),
    )


def _earlier_items(session: Session, tenant: str, previous_id: str | None) -> list[Item]:
    """What was said so far. Raises NotFound, InvalidRequest where the last turn has no answer yet, or none at all."""
    if previous_id is None:
        return []
    turns = responses.conversation(session, previous_id, tenant=tenant)
    return [item for turn in turns for item in _turn_items(turn)]


def _turn_items(turn: StoredResponse) -> Sequence[Item]:
    if turn.outcome is None or turn.outcome.status_code != SUCCESS:
        raise InvalidRequest(
            f"previous_response_id: expected a response that was answered, got {turn.row.id}, which was not",
            param="previous_response_id",
        )
    return [*input_items(turn.row), *output_items(turn.row.id, msgspec.json.decode(turn.outcome.body))]


def input_items(row: ResponseRow) -> list[Item]:
    return _items.decode(row.items)


def beginning(row: ResponseRow) -> Beginning:
    return Beginning(row.id, int(row.created_at.timestamp()), _echo.decode(row.echo))


def response_object(found: StoredResponse) -> dict[str, Any]:
    start, outcome = beginning(found.row), found.outcome
    if outcome is not None and outcome.status_code is not None:
        return answered(start, outcome.status_code, outcome.body, int(outcome.finished_at.timestamp()))
    if found.job.ending == JobState.EXPIRED.value:
        return failed(start, "server_error", "it was not answered in time and is given up")
    if found.is_cancelled:
        return unfinished(start, Status.CANCELLED)
    return unfinished(start, Status.IN_PROGRESS if found.is_running else Status.QUEUED)


def look(context: Context, tenant: str, response_id: str, *, is_stored: bool = True) -> StoredResponse:
    with context.database.begin() as session:
        return responses.find(session, response_id, tenant=tenant, is_stored=is_stored)
