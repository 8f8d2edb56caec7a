"""What became of it, read when everything is over: straight from the tables, and the files as their owners get them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from db.connection import Database
from db.files import PostgresFiles
from tests.chaos.check import Ended, Line

ENDED = ("completed", "failed", "cancelled", "expired")

_JOBS = """
SELECT j.id, j.public_id, j.tenant, j.state, j.num_completed, j.num_failed, j.output_file_id, j.error_file_id,
    coalesce(sum(c.num_completed), 0)::int AS chunk_completed, coalesce(sum(c.num_failed), 0)::int AS chunk_failed,
    coalesce(array_agg(c.attempt) FILTER (WHERE c.id IS NOT NULL), '{}') AS attempts,
    (SELECT count(*)::int FROM retries WHERE retries.job_id = j.id) AS num_retries
FROM jobs j LEFT JOIN chunks c ON c.job_id = j.id WHERE j.service_class = 'batch' GROUP BY j.id ORDER BY j.id
"""
_OUTCOMES = """
SELECT r.custom_id, o.status_code, o.body, o.attempt, c.attempt AS chunk_attempt
FROM outcomes o LEFT JOIN requests r USING (job_id, index)
LEFT JOIN chunks c ON c.job_id = o.job_id AND o.index >= c.first_request AND o.index < c.first_request + c.num_requests
WHERE o.job_id = %s
"""


class Facts:
    """Raises psycopg.OperationalError while PostgreSQL is away."""

    def __init__(self, database_url: str, url: str) -> None:
        self._database_url = database_url
        self._url = url

    def _connect(self) -> "psycopg.Connection[dict[str, Any]]":
        return psycopg.connect(self._database_url, autocommit=True, connect_timeout=2, row_factory=dict_row)

    def num_done(self, public_id: str) -> int:
        query = (
            "SELECT coalesce(sum(c.num_completed + c.num_failed), 0)::int AS count FROM chunks c"
            " JOIN jobs j ON j.id = c.job_id WHERE j.public_id = %s"
        )
        with self._connect() as connection:
            return int(connection.execute(query, [public_id]).fetchall()[0]["count"])

    def unfinished(self) -> list[str]:
        """Batches that have not ended: `<id> <state>`."""
        query = "SELECT public_id || ' ' || state AS name FROM jobs WHERE service_class = 'batch' AND state <> ALL(%s)"
        with self._connect() as connection:
            return [row["name"] for row in connection.execute(query, [list(ENDED)])]

    def span(self, public_id: str) -> tuple[float, float]:
        """From the begin of the job to its last outcome, in seconds since 1970."""
        query = (
            "SELECT extract(epoch FROM min(j.in_progress_at))::float8 AS begin,"
            " extract(epoch FROM max(o.finished_at))::float8 AS end"
            " FROM jobs j JOIN outcomes o ON o.job_id = j.id WHERE j.public_id = %s"
        )
        with self._connect() as connection:
            row = connection.execute(query, [public_id]).fetchall()[0]
        return row["begin"], row["end"]

    def ended(self, expected: Mapping[str, Mapping[str, str]]) -> list[Ended]:
        """Every batch there is; one that nobody remembers is expected to have no row at all."""
        with self._connect() as connection:
            found = connection.execute(_JOBS).fetchall()
            outcomes = {job["id"]: connection.execute(_OUTCOMES, [job["id"]]).fetchall() for job in found}
        return [self._job(job, outcomes[job["id"]], expected.get(job["public_id"], {})) for job in found]

    def _job(self, job: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]], expected: Mapping[str, str]) -> Ended:
        return Ended(
            name=f"{job['public_id']} of {job['tenant']}",
            state=job["state"],
            expected=expected,
            lines=self._lines(job),
            outcomes=[Line(row["custom_id"], _answer(row["status_code"], json.loads(row["body"]))) for row in outcomes],
            job_counters=(job["num_completed"], job["num_failed"]),
            chunk_counters=(job["chunk_completed"], job["chunk_failed"]),
            attempts=job["attempts"],
            row_attempts=[(row["attempt"], row["chunk_attempt"]) for row in outcomes],
            num_retries=job["num_retries"],
        )

    def wrong_online(self) -> list[str]:
        """Online questions with two outcomes cannot be stored; those whose job is over without any are named."""
        query = (
            "SELECT j.public_id FROM jobs j WHERE j.service_class = 'online' AND j.state = ANY(%s)"
            " AND NOT EXISTS (SELECT FROM outcomes o WHERE o.job_id = j.id)"
        )
        with self._connect() as connection:
            return [row["public_id"] for row in connection.execute(query, [list(ENDED)])]

    def counted(self) -> list[str]:
        """Chunks of batches with more claims that count than one: `<job>#<index>: <claims>, <handed back>`."""
        query = (
            "SELECT j.public_id || '#' || c.index || ': ' || c.attempt || ', ' || c.num_handed_back AS name"
            " FROM chunks c JOIN jobs j ON j.id = c.job_id"
            " WHERE j.service_class = 'batch' AND c.attempt - c.num_handed_back > 1"
        )
        with self._connect() as connection:
            return [row["name"] for row in connection.execute(query)]

    def _lines(self, job: Mapping[str, Any]) -> list[Line]:
        ids = [job[name] for name in ("output_file_id", "error_file_id") if job[name] is not None]
        contents = [self._content(file_id, job["tenant"]) for file_id in ids]
        return [_line(json.loads(text)) for content in contents for text in content.splitlines()]

    def _content(self, file_id: str, tenant: str) -> bytes:
        if tenant == "default":
            return httpx.get(f"{self._url}/v1/files/{file_id}/content", timeout=60).raise_for_status().content
        database = Database(self._database_url, pool_size=1)
        try:
            return b"".join(PostgresFiles(database).read(file_id))
        finally:
            database.close()


def _line(line: Mapping[str, Any]) -> Line:
    response = line["response"]
    return Line(line["custom_id"], _answer(response["status_code"], response["body"]) if response else None)


def _answer(status_code: int | None, body: Mapping[str, Any]) -> str | None:
    return str(body["choices"][0]["message"]["content"]) if status_code == 200 else None
