"""Which event the end of a job is, left for the webhooks in the transaction that ends it. An answer that somebody waits
for is none; a response in the background is one, under its own id and by what became of it."""

import msgspec
from sqlalchemy.orm import Session

from core.job import JobState, ServiceClass
from core.openai.responses.response import Beginning, answered
from core.webhooks.events import EventType, of_ended_job
from db.tables import JobRow, OutcomeRow
from db.webhooks import deliveries


def announce(session: Session, job: JobRow, ending: JobState) -> bool:
    """True when there is somebody to tell."""
    if job.service_class != ServiceClass.ONLINE:
        return deliveries.announce(session, job.tenant, of_ended_job(job.public_id, ending), job.public_id)
    response = deliveries.awaited_response(session, job)
    if response is None or not msgspec.json.decode(response.echo)["background"]:
        return False
    event = _event(session.get(OutcomeRow, (job.id, 0)), ending)
    return deliveries.announce(session, job.tenant, event, response.id)


def _event(outcome: OutcomeRow | None, ending: JobState) -> EventType:
    if outcome is not None and outcome.status_code is not None:
        told = answered(Beginning("", 0, {}), outcome.status_code, outcome.body, 0)
        return EventType(f"response.{told['status']}")
    return EventType.RESPONSE_FAILED if ending is JobState.EXPIRED else EventType.RESPONSE_CANCELLED
