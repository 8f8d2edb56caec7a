"""Submitting jobs that are no inference: they wait for a node that serves their model."""

import msgspec

from api.context import Context
from api.native.bodies import BenchmarkBody, QuantizationBody, WarmingBody
from core.access import Identity
from core.errors import Unavailable
from core.job import JobKind, ServiceClass
from db import idempotency, jobs
from db.idempotency import Key
from db.native import heavy
from db.native.submission import NewJob
from db.tables import JobRow


def submit(
    context: Context, who: Identity, body: WarmingBody | BenchmarkBody | QuantizationBody, once: Key | None
) -> JobRow:
    """Raises NotFound when no node serves the model, and RateLimited."""
    new = NewJob(
        kind=JobKind(body.kind),
        tenant=who.tenant,
        key_id=who.key_id,
        service_class=ServiceClass.HEAVY,
        model=body.model,
        priority=body.priority,
        deadline=body.deadline,
        user_metadata=body.metadata,
    )
    parameters = msgspec.json.encode(body.parameters()).decode()
    with context.database.begin() as session:
        if (made := idempotency.recall(session, once)) is not None:
            return jobs.find(session, made, tenant=who.tenant)
        context.admission.check_jobs(session, who)
        job = heavy.create(session, new, node=body.node, parameters=parameters)
        idempotency.remember(session, once, job.public_id)
        nodes = [node for node, _ in heavy.waiting(session, job.public_id)]
    _announce(context, nodes, job)
    return job


def _announce(context: Context, nodes: list[str], job: JobRow) -> None:
    """All that may run it hear of it; the first one has it. The reconciler sends again, should the broker be away."""
    try:
        for node in nodes:
            context.messages.run_heavy(node, job.public_id)
    except Unavailable:
        return
