"""What a request became: engine answers and refusals turned into the outcomes that are stored. Pure."""

import msgspec

from core.errors import InvalidRequest
from core.openai import embedding
from core.openai.answer import error_body, response_body
from core.protocol import Embedded, Failed, Finished
from db.chunks import Lease, Outcome, Request

ENGINE_CRASHED = "engine_crashed"

_STATUS_OF_CODE = {
    "context_length_exceeded": 400,
    "invalid_request": 400,
    "unsupported_parameter": 400,
    "model_not_found": 404,
    "model_not_loaded": 503,
    "engine_outdated": 503,
    "deadline_exceeded": 504,
}
SERVER_ERROR = 500


def of_finished(lease: Lease, index: int, answer: Finished, created: int) -> Outcome:
    """`created`: seconds since 1970."""
    request_id = f"{lease.job_public_id}-{index}"
    body = response_body(lease.endpoint, request_id, lease.model, answer, created)
    return Outcome(
        index=index,
        status_code=200,
        body=msgspec.json.encode(body).decode(),
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        cached_tokens=answer.usage.cached_tokens,
        queue_seconds=answer.timing.queue_seconds,
        first_token_seconds=answer.timing.first_token_seconds,
        total_seconds=answer.timing.total_seconds,
        device_seconds=answer.timing.device_seconds,
    )


def of_embedded(lease: Lease, request: Request, answer: Embedded) -> Outcome:
    body = embedding.response_body(request.body, lease.model, answer)
    return Outcome(
        index=request.index,
        status_code=200,
        body=msgspec.json.encode(body).decode(),
        prompt_tokens=answer.usage.prompt_tokens,
        queue_seconds=answer.timing.queue_seconds,
        total_seconds=answer.timing.total_seconds,
        device_seconds=answer.timing.device_seconds,
    )


def of_failed(index: int, failure: Failed) -> Outcome:
    return _failure(index, _STATUS_OF_CODE.get(failure.code, SERVER_ERROR), failure.code, failure.message)


def of_invalid(index: int, error: InvalidRequest) -> Outcome:
    return _failure(index, 400, error.code, error.message, error.param)


def of_crashes(index: int, num_crashes: int) -> Outcome:
    """For a request that took the engine down too often, all by itself."""
    message = f"the engine crashed {num_crashes} times while this request alone was running"
    return _failure(index, SERVER_ERROR, ENGINE_CRASHED, message)


def _failure(index: int, status_code: int, code: str, message: str, param: str | None = None) -> Outcome:
    kind = "server_error" if status_code >= SERVER_ERROR else "invalid_request_error"
    body = error_body(code, message, param=param, kind=kind)
    return Outcome(index=index, status_code=status_code, body=msgspec.json.encode(body).decode())
