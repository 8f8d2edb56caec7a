"""Errors as HTTP answers in OpenAI's shape. Every class of `core.errors` has its status here."""

import logging
import math
from collections.abc import Mapping
from types import MappingProxyType

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from core import errors
from core.openai.answer import error_body

logger = logging.getLogger(__name__)

STATUS: Mapping[type[errors.MillraceError], int] = MappingProxyType(
    {
        errors.InvalidRequest: 400,
        errors.Unauthenticated: 401,
        errors.Forbidden: 403,
        errors.NotFound: 404,
        errors.Conflict: 409,
        errors.Overloaded: 429,
        errors.Unavailable: 503,
        errors.Interrupted: 503,
        errors.ModelFailure: 500,
        errors.ConfigurationError: 500,
    }
)
SERVER_ERROR = 500
NOT_FOUND = 404
TOO_LARGE = 413


class RequestTooLarge(HTTPException):
    """Not of our tree, because FastAPI lets only HTTPException through while it reads a form."""

    code = "request_too_large"

    def __init__(self, message: str) -> None:
        super().__init__(TOO_LARGE, message)


def status_of(error: errors.MillraceError) -> int:
    """The status of the nearest class that has one."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_response(status: int, code: str, message: str, param: str | None = None) -> JSONResponse:
    kind = (
        "server_error" if status >= SERVER_ERROR else "rate_limit_error" if status == 429 else "invalid_request_error"
    )
    return JSONResponse(error_body(code, message, param=param, kind=kind), status_code=status)


def install(app: FastAPI) -> None:
    app.add_exception_handler(errors.MillraceError, _millrace_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


async def _millrace_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.MillraceError)
    return millrace_error(request, error)


def millrace_error(request: Request, error: errors.MillraceError) -> JSONResponse:
    response = error_response(status_of(error), error.code, error.message, error.param)
    if isinstance(error, errors.Unavailable):
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
        logger.warning("%s %s: %s", request.method, request.url.path, error, extra={"event": "api.unavailable"})
    if isinstance(error, errors.Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.Interrupted):
        response.headers["x-should-retry"] = "false"  # OpenAI's clients would only start the same work again
    return response


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = ".".join(path) or None
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_request"
    return error_response(400, code, f"{param or 'body'}: {first['msg']}", param)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == NOT_FOUND:
        message = f"no route {request.method} {request.url.path}; /openapi.json lists those there are"
        return error_response(NOT_FOUND, "unknown_url", message)
    return error_response(error.status_code, getattr(error, "code", "invalid_request"), str(error.detail))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error, extra={"event": "api.error"})
    return error_response(SERVER_ERROR, "internal_error", "the server failed; its log (api.log) says why")
