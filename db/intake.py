"""Requests in: `COPY` of validated rows and the chunks cut from them, in the caller's transaction."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.orm import Session

from core.chunks import Cut, Cutter
from core.openai.batchfile import BatchRow
from db import shares
from db.connection import driver
from db.tables import JobRow

_COPY = "COPY requests (job_id, index, custom_id, body) FROM STDIN"

_CUT = text("""
INSERT INTO chunks (job_id, index, first_request, num_requests, cost_tokens, model, service_class, tenant, priority,
    state)
SELECT :job_id, cut.ordinality - 1, cut.first_request, cut.num_requests, cut.cost_tokens, :model, :service_class,
    :tenant, :priority, 'waiting'
FROM ROWS FROM (json_to_recordset(CAST(:cuts AS json)) AS (first_request int, num_requests int, cost_tokens bigint))
    WITH ORDINALITY AS cut
""")


def copy_requests(session: Session, job_id: int, rows: Iterable[BatchRow], cutter: Cutter) -> int:
    """Streams the rows into `requests`, tells the cutter what they cost, and returns how many they were. What `rows`
    raises ends the copy and passes."""
    count = 0
    with driver(session).cursor() as cursor, cursor.copy(_COPY) as copy:
        for count, row in enumerate(rows, 1):
            copy.write_row((job_id, count - 1, row.custom_id, row.body))
            cutter.add(row.cost_tokens, len(row.body))
    return count


def add_chunks(session: Session, job: JobRow, model: str, cuts: Sequence[Cut]) -> None:
    """Makes the cuts of a job claimable, under the priority that it has now."""
    place: dict[str, Any] = {
        "service_class": job.service_class,
        "model": model,
        "priority": job.priority,
        "tenant": job.tenant,
    }
    shares.arrive(session, **place)
    session.execute(_CUT, {"job_id": job.id, "cuts": msgspec.json.encode(cuts).decode(), **place})
