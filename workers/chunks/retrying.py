"""What a failed request deserves: its outcome, another try now or later, or the chunk given back. Pure."""

import enum

from core.protocol import Embedded, Failed, Finished
from db.chunks import Request, Retry

LONGEST_DELAY_SECONDS = 300.0
MODEL_NOT_LOADED = "model_not_loaded"
NOT_RECEIVED = "not_received"
ENGINE_OUTDATED = "engine_outdated"  # it will be replaced; the request can do nothing about it
OVERLOADED = "overloaded"
# Failures that say nothing about the request: it runs again, and no attempt is counted.
NOT_THE_REQUESTS_FAULT = frozenset({"engine_lost", "interrupted", "cancelled", "model_unloaded", "overloaded"})
# Failures of the device or the model while the request ran: another try may end otherwise.
MAY_PASS = frozenset({"model_failure", "internal_error", "out_of_memory"})


class Verdict(enum.Enum):
    SEND_AGAIN = "send_again"
    GIVE_BACK = "give_back"
    TRY_LATER = "try_later"
    FAIL = "fail"


def has_run(answer: Finished | Embedded | Failed) -> bool:
    """Whether the engine lived through the request."""
    return not isinstance(answer, Failed) or answer.code not in NOT_THE_REQUESTS_FAULT | {ENGINE_OUTDATED}


def verdict(failure: Failed, request: Request, max_attempts: int, *, is_online: bool) -> Verdict:
    """A person is told at once that the model cannot be loaded, or failed; bulk rows wait until it can."""
    if failure.code == NOT_RECEIVED:
        return Verdict.SEND_AGAIN
    if failure.code in NOT_THE_REQUESTS_FAULT or (failure.code == MODEL_NOT_LOADED and not is_online):
        return Verdict.GIVE_BACK
    if failure.code == ENGINE_OUTDATED and not is_online:
        return Verdict.TRY_LATER
    may_pass = failure.is_retryable or failure.code in MAY_PASS
    if may_pass and not is_online and request.num_attempts + 1 < max_attempts:
        return Verdict.TRY_LATER
    return Verdict.FAIL


def retry(failure: Failed, request: Request, base_seconds: float, chance: float) -> Retry:
    """Exponential back-off with jitter: half to one and a half times the nominal delay.  chance: [0, 1)."""
    nominal = min(base_seconds * 2.0**request.num_attempts, LONGEST_DELAY_SECONDS)
    return Retry(
        index=request.index,
        num_attempts=request.num_attempts + (failure.code != ENGINE_OUTDATED),
        code=failure.code,
        message=failure.message,
        delay_seconds=nominal * (0.5 + chance),
    )
