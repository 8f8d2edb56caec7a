"""The queues as people look at them: what waits and runs for each model and class. Reads only chunks that have not
ended, through their partial indexes."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

MOST_JOBS = 10


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """Rows without an outcome, in chunks that wait or run. oldest_age_seconds: since the job of the oldest waiting
    chunk was submitted; None where nothing waits."""

    service_class: str
    model: str
    num_waiting_chunks: int
    num_running_chunks: int
    num_waiting_rows: int
    num_running_rows: int
    oldest_age_seconds: float | None
    is_paused: bool


@dataclass(frozen=True, slots=True)
class StillRunning:
    """Of a queue and model that is held. num_rows: without an outcome, in the chunks that run. jobs: whose chunks these
    are, at most `MOST_JOBS`."""

    service_class: str
    model: str
    num_rows: int
    num_jobs: int
    jobs: list[str]


@dataclass(frozen=True, slots=True)
class JobCount:
    """Jobs that have not ended."""

    kind: str
    service_class: str
    state: str
    num_jobs: int


_FIGURES = text("""
SELECT figures.*, EXISTS (
    SELECT FROM pauses WHERE pauses.service_class IN ('*', figures.service_class)
      AND pauses.model IN ('*', figures.model))
FROM (
WITH held AS (
    SELECT c.*, j.created_at FROM chunks c JOIN jobs j ON j.id = c.job_id
    WHERE (c.state = 'waiting' OR c.state = 'running')
      AND (CAST(:tenant AS text) IS NULL OR j.tenant = :tenant)
)
SELECT c.service_class, c.model,
    count(*) FILTER (WHERE c.state <> 'running'),
    count(*) FILTER (WHERE c.state = 'running'),
    coalesce(sum(c.num_requests - c.num_completed - c.num_failed) FILTER (WHERE c.state <> 'running'), 0),
    coalesce(sum(c.num_requests - c.num_completed - c.num_failed) FILTER (WHERE c.state = 'running'), 0),
    extract(epoch FROM clock_timestamp() - min(c.created_at) FILTER (WHERE c.state <> 'running'))
FROM held c
GROUP BY c.service_class, c.model
UNION ALL
SELECT wanted.class, p.model, 0, 0, 0, 0, NULL
FROM (SELECT DISTINCT model FROM placements) AS p CROSS JOIN (VALUES ('online'), ('batch')) AS wanted(class)
WHERE NOT EXISTS (SELECT FROM held c WHERE c.service_class = wanted.class AND c.model = p.model)
) AS figures ORDER BY 1 DESC, 2
""")

_STILL_RUNNING = text("""
SELECT c.service_class, c.model, sum(c.num_requests - c.num_completed - c.num_failed), count(DISTINCT j.id),
    array_agg(DISTINCT j.public_id)
FROM chunks c JOIN jobs j ON j.id = c.job_id
WHERE c.state = 'running' AND EXISTS (
    SELECT FROM pauses p WHERE p.service_class IN ('*', c.service_class) AND p.model IN ('*', c.model))
GROUP BY 1, 2 ORDER BY 1, 2
""")

_JOB_COUNTS = text("""
SELECT kind, service_class, state, count(*) FROM jobs
WHERE state IN ('validating', 'in_progress', 'finalizing', 'cancelling')
GROUP BY kind, service_class, state ORDER BY 1, 2, 3
""")


def figures(session: Session, *, tenant: str | None = None) -> list[QueueFigures]:
    """Of every class and model that is served or has work; counts the work of one tenant, or of all."""
    return [
        QueueFigures(
            service_class=row[0],
            model=row[1],
            num_waiting_chunks=row[2],
            num_running_chunks=row[3],
            num_waiting_rows=int(row[4]),
            num_running_rows=int(row[5]),
            oldest_age_seconds=None if row[6] is None else float(row[6]),
            is_paused=row[7],
        )
        for row in session.execute(_FIGURES, {"tenant": tenant})
    ]


def still_running(session: Session) -> list[StillRunning]:
    """In spite of a pause."""
    rows = session.execute(_STILL_RUNNING)
    return [StillRunning(row[0], row[1], int(row[2]), row[3], list(row[4][:MOST_JOBS])) for row in rows]


def job_counts(session: Session) -> list[JobCount]:
    """By kind, class and state."""
    return [JobCount(*row) for row in session.execute(_JOB_COUNTS)]
