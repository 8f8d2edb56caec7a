"""The one error tree. Each class fixes its code and whether another try can help; messages say what was expected,
what came and what to do. HTTP statuses are given in `api/errors.py`, retries in `tasks/base.py`.

    MillraceError
    |-- InvalidRequest        the caller's fault; never retried
    |   |-- ContextLengthExceeded
    |   `-- Unsupported
    |-- Unauthenticated       no key, or none that is valid; never retried
    |-- Forbidden             the key may not do that; never retried
    |-- NotFound              never retried
    |-- Conflict              the state does not allow it; never retried
    |   `-- LeaseLost         somebody else owns the chunk now; write nothing more
    |-- Unavailable           a server is away; back off and try again
    |   |-- EngineLost        the engine process went away with our requests
    |   |-- ModelUnavailable  a model failed too often in a row; tried again in a moment
    |   `-- Overloaded        full; try again after `retry_after_seconds`
    |       `-- RateLimited   this key or tenant has had its share
    |-- Interrupted           cancel, deadline or shutdown; not counted as an attempt
    |-- ModelFailure          the model itself failed on this request
    `-- ConfigurationError    settings or installation are wrong; a person has to act
"""

from collections.abc import Mapping


class MillraceError(Exception):
    """Root of the tree. `code` is stable and for machines; `param` names the offending field, if any."""

    code = "internal_error"
    is_retryable = False

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(MillraceError):
    code = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class Unsupported(InvalidRequest):
    """Understood, but not offered; the message names what is offered instead."""

    code = "unsupported_parameter"


class Unauthenticated(MillraceError):
    code = "invalid_api_key"


class Forbidden(MillraceError):
    code = "insufficient_permissions"


class NotFound(MillraceError):
    code = "not_found"


class Conflict(MillraceError):
    code = "conflict"


class LeaseLost(Conflict):
    """Raised by a fenced write that found another owner or attempt on its chunk: the writer must stop at once."""

    code = "lease_lost"


class Unavailable(MillraceError):
    code = "unavailable"
    is_retryable = True

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineLost(Unavailable):
    code = "engine_lost"


class ModelUnavailable(Unavailable):
    code = "model_unavailable"


class Overloaded(Unavailable):
    code = "overloaded"


class RateLimited(Overloaded):
    """`headers`: what the answer tells about the limit."""

    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, retry_after_seconds: float = 1.0, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.headers = dict(headers or {})


class Interrupted(MillraceError):
    code = "interrupted"
    is_retryable = True


class ModelFailure(MillraceError):
    code = "model_failure"


class ConfigurationError(MillraceError):
    code = "configuration_error"
