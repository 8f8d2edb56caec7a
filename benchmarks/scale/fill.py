"""Fills a database with request rows as months of use would: batches of 20 to 10,000 rows by many tenants, for several
models, at several priorities and in every state, and among them online requests, each a job of one row."""

from sqlalchemy import text
from sqlalchemy.engine import Connection

from db.connection import Database

ONLINE_FRACTION = 0.1
MEAN_BATCH_ROWS = (20 + 200 + 2_000 + 10_000) / 4
CHUNK_ROWS = 500

_MODELS = """
INSERT INTO models (name, source) SELECT 'model-' || n, 'null:' FROM generate_series(0, 7) AS n;
INSERT INTO placements (node, device, model) SELECT 'node', 'cpu', name FROM models;
"""

# Of twenty batches ten are completed, six run, one each is validating, finalizing, cancelled and failed. All that wait
# for something are due to be looked at, and what runs is not, but where a chunk has ended.
_BATCHES = """
INSERT INTO jobs (public_id, tenant, kind, service_class, state, endpoint, model, priority, num_requests, created_at,
    in_progress_at, finalizing_at, completed_at, expires_at, look_at)
SELECT 'batch_' || n, 'tenant-' || n % 23, 'inference', 'batch', s.state, '/v1/chat/completions', 'model-' || n % 8,
    (ARRAY[2, 5, 5, 5, 8])[1 + n % 5], (ARRAY[20, 200, 2000, 10000])[1 + n % 4], t.at, t.at,
    CASE WHEN s.state IN ('completed', 'finalizing') THEN t.at + interval '1 hour' END,
    CASE WHEN s.state = 'completed' THEN t.at + interval '1 hour' END, now() + interval '1 day',
    CASE WHEN n % 20 < 16 THEN now() + interval '1 hour' ELSE now() END
FROM generate_series(1, :num_jobs) AS n,
LATERAL (SELECT (array_fill('completed'::text, ARRAY[10]) || array_fill('in_progress'::text, ARRAY[6])
    || ARRAY['validating', 'finalizing', 'cancelled', 'failed'])[1 + n % 20]) AS s(state),
LATERAL (SELECT now() - make_interval(mins => :num_jobs - n)) AS t(at)
"""

_ONLINE = """
INSERT INTO jobs (public_id, tenant, kind, service_class, state, endpoint, model, num_requests, num_completed,
    created_at, in_progress_at, finalizing_at, completed_at, expires_at)
SELECT 'req_' || n, 'tenant-' || n % 23, 'inference', 'online', s.state, '/v1/chat/completions', 'model-' || n % 8,
    1, 1, now(), now(), now(), CASE WHEN s.state = 'completed' THEN now() END, now() + interval '10 minutes'
FROM generate_series(1, :num_jobs) AS n,
LATERAL (SELECT CASE WHEN n > :num_jobs - 64 THEN 'in_progress' ELSE 'completed' END) AS s(state)
"""

# Of the chunks of a batch that runs the first third is done; a few run, fewer wait for another try, the rest waits.
_CHUNKS = """
INSERT INTO chunks (job_id, index, first_request, num_requests, model, service_class, tenant, priority, cost_tokens,
    state, attempt, owner, lease_until, available_at, look_at, num_completed, completion_tokens)
SELECT j.id, k, k * :rows, least(:rows, j.num_requests - k * :rows), j.model, j.service_class, j.tenant, j.priority,
    :rows * 16, s.state, 1, CASE WHEN s.state = 'running' THEN 'worker' END,
    CASE WHEN s.state = 'running' THEN now() + interval '15 seconds' END,
    CASE WHEN k % 10 = 9 AND s.state = 'waiting' THEN now() + interval '1 minute' END,
    CASE WHEN s.state = 'done' AND j.state = 'in_progress' AND k = 0 THEN now() END,
    CASE WHEN s.state = 'done' THEN least(:rows, j.num_requests - k * :rows) ELSE 0 END,
    CASE WHEN s.state = 'done' THEN :rows * 16 ELSE 0 END
FROM jobs AS j, generate_series(0, (j.num_requests - 1) / :rows) AS k,
LATERAL (SELECT CASE WHEN j.state IN ('completed', 'finalizing') THEN 'done' WHEN j.state = 'cancelled' THEN 'cancelled'
    WHEN j.service_class = 'online' THEN 'waiting' WHEN k < (j.num_requests / :rows) / 3 THEN 'done'
    WHEN k % 10 = 7 THEN 'running' ELSE 'waiting' END) AS s(state)
WHERE j.state NOT IN ('validating', 'failed')
"""

_REQUESTS = """
INSERT INTO requests (job_id, index, custom_id, body)
SELECT j.id, i, 'row-' || i,
    '{"model":"' || j.model || '","messages":[{"role":"user","content":"question ' || i || '"}]}'
FROM jobs AS j, generate_series(0, j.num_requests - 1) AS i WHERE j.state NOT IN ('validating', 'failed')
"""

_OUTCOMES = """
INSERT INTO outcomes (job_id, index, status_code, attempt, body, prompt_tokens, completion_tokens)
SELECT c.job_id, i, 200, 1, '{"choices":[{"message":{"content":"an answer"}}]}', 12, 16
FROM chunks AS c, generate_series(c.first_request, c.first_request + c.num_requests - 1) AS i WHERE c.state = 'done'
"""

_SHARES = """
INSERT INTO tenant_shares (service_class, model, priority, tenant, used_tokens)
SELECT DISTINCT service_class, model, priority, tenant, 1000 FROM jobs WHERE service_class = 'batch'
"""


def fill(database: Database, num_rows: int) -> int:
    """Returns how many request rows there are in the end."""
    num_online = round(num_rows * ONLINE_FRACTION)
    # Three of twenty batches are refused or not looked at yet and have no rows.
    num_batches = round((num_rows - num_online) / MEAN_BATCH_ROWS * 20 / 18)
    with database.engine.begin() as connection:
        for statement in _MODELS.split(";\n"):
            _run(connection, statement)
        _run(connection, _BATCHES, num_jobs=num_batches)
        _run(connection, _ONLINE, num_jobs=num_online)
        _run(connection, _CHUNKS, rows=CHUNK_ROWS)
        _run(connection, _REQUESTS)
        _run(connection, _OUTCOMES)
        _run(connection, _SHARES)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))  # as autovacuum does in time
        return int(connection.execute(text("SELECT count(*) FROM requests")).scalar_one())


def _run(connection: Connection, statement: str, **values: int) -> None:
    if statement.strip():
        connection.execute(text(statement), values)
