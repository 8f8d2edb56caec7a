"""Every error code with the place where it is seen and its meaning, for docs/reference/errors.md. A test compares this
list with the codes that stand in the code.
"""

HTTP = "HTTP"
REFUSED = "refused batch"
ROW = "error file"
LOG = "log"
COMMAND = "command line"

CODES = (
    ("batch_cancelled", ROW, "The request never ran, because its batch was cancelled."),
    ("batch_expired", ROW, "The request never ran, because the completion window closed."),
    ("batch_not_completed", COMMAND, "The batch has no results, or its file was refused."),
    ("cancelled", LOG, "The engine gave a request up because its client asked for it; it runs again if it must."),
    ("client_closed_request", HTTP, "Status 499: the client left before the answer; its request was cancelled."),
    ("configuration_error", f"{HTTP}, {COMMAND}", "Settings or installation are wrong; the message says what to do."),
    ("conflict", HTTP, "The state does not allow it, such as cancelling a batch that has ended."),
    ("context_length_exceeded", f"{HTTP}, {ROW}", "The prompt is longer than the model's context."),
    (
        "deadline_exceeded",
        LOG,
        "A client of the engine gave its request a deadline, and it passed. Workers give none: no request sees this.",
    ),
    ("demo_failed", COMMAND, "Not every row of the demo was answered."),
    ("duplicate_custom_id", REFUSED, "An earlier line has the same `custom_id`."),
    ("empty_file", REFUSED, "The file holds no request."),
    ("engine_crashed", ROW, "The engine crashed too often while this request alone was running."),
    ("engine_lost", LOG, "The engine went away while the request was running; it runs again."),
    ("file_not_found", REFUSED, "The bytes of the input file are gone."),
    ("idempotency_key_reused", HTTP, "An earlier request had the same `Idempotency-Key` and another body."),
    ("insufficient_permissions", HTTP, "Status 403: the key lacks the scope that the route needs."),
    ("internal_error", HTTP, "A defect of Millrace; the log of the API has the traceback."),
    ("interrupted", f"{HTTP}, {LOG}", "Ended by a deadline or a shutdown, not by the request; try again."),
    ("invalid_api_key", HTTP, "Status 401: no key was sent, or it is unknown, expired or revoked."),
    ("invalid_endpoint", f"{HTTP}, {REFUSED}", "Not one of the endpoints that batches have."),
    ("invalid_host", HTTP, "The name that the request was addressed to is not in `MILLRACE_TRUSTED_HOSTS`."),
    ("invalid_json", f"{HTTP}, {ROW}", "The body is not a JSON object."),
    ("invalid_json_line", REFUSED, "The line is not JSON."),
    ("invalid_line", REFUSED, "The line is JSON, but not a request object."),
    ("invalid_method", REFUSED, "`method` is not `POST`."),
    ("invalid_request", f"{HTTP}, {REFUSED}, {ROW}", "Something in the request is wrong; `param` names it."),
    ("invalid_type", f"{HTTP}, {REFUSED}, {ROW}", "A field has a value of the wrong type or out of its range."),
    ("invalid_url", REFUSED, "`url` is not the endpoint of the batch."),
    ("lease_lost", LOG, "Another worker owns the chunk; this one stops and writes nothing."),
    ("line_too_long", REFUSED, "A line is longer than 16 MB."),
    ("mismatched_model", REFUSED, "The lines name more than one model."),
    ("missing_custom_id", REFUSED, "`custom_id` is missing or is not text."),
    ("model_failure", f"{HTTP}, {ROW}", "The model itself failed on this request."),
    ("model_not_found", f"{HTTP}, {REFUSED}, {ROW}", "No engine serves a model of this name."),
    (
        "model_not_loaded",
        f"{HTTP}, {LOG}",
        "The model could not be loaded; it is tried again, and batch rows wait for it.",
    ),
    (
        "model_unavailable",
        HTTP,
        "Status 503: the model failed several times in a row, so it is left alone for `Retry-After` seconds.",
    ),
    ("model_unloaded", LOG, "The model was unloaded while the request waited; it runs again."),
    ("not_executed", HTTP, "The request was stopped before it could run."),
    ("not_found", HTTP, "There is no such file, batch or job."),
    ("not_received", LOG, "The request was lost on its way to the engine; it is sent again."),
    ("overloaded", f"{HTTP}, {LOG}", "Full; try again after `Retry-After` seconds."),
    ("previous_response_not_found", HTTP, "The conversation cannot be continued: a response of it is gone."),
    (
        "rate_limit_exceeded",
        HTTP,
        "Status 429: this key or its tenant has had its share; `Retry-After` tells when there is more.",
    ),
    ("request_failed", COMMAND, "The server answered with an error; the message is its own."),
    ("request_too_large", HTTP, "Status 413: the body or the file is larger than the limit."),
    (
        "stream_interrupted",
        HTTP,
        "In the last event of a stream: the engine stopped in the middle of the answer; another run would differ.",
    ),
    ("too_many_requests", REFUSED, "The file has more requests than one batch may have."),
    ("unavailable", HTTP, "PostgreSQL, Redis or an engine is away; try again after `Retry-After` seconds."),
    ("unknown_parameter", f"{HTTP}, {REFUSED}", "The body has a field that the endpoint does not know."),
    ("unknown_url", HTTP, "There is no such route."),
    ("unsupported_model", f"{HTTP}, {REFUSED}", "The model does not do this: an embedder asked for an answer, say."),
    ("unsupported_parameter", f"{HTTP}, {REFUSED}, {ROW}", "Understood, but not offered; the message says what is."),
    ("webhook_not_delivered", HTTP, "The receiver of a sample event did not answer; the message says why."),
)
