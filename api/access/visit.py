"""One request on its way through: who asks, what it was admitted with, and the headers that its answer will carry."""

from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

from api.access.rates import Taken
from core.access import Identity

SERVER_ERROR = 500


@dataclass(slots=True)
class Visit:
    """`model`: of an online request that its breaker let through. `job_id`: what it became. `is_probe`: the breaker's.
    `is_suspect`: the model failed lately. `has_failed`: behind a status that said otherwise."""

    identity: Identity
    headers: dict[str, str] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)
    model: str | None = None
    job_id: int | None = None
    is_probe: bool = False
    is_suspect: bool = False
    has_failed: bool = False

    def is_to_be_settled(self, status: int) -> bool:
        """Whether the end of an online request tells anybody anything. `status`: of the HTTP answer."""
        has_tokens = any(one.window.kind == "tokens" for one in self.taken)
        has_failed = self.has_failed or status >= SERVER_ERROR
        return self.model is not None and (has_tokens or self.is_suspect or has_failed)


def visit_of(request: Request) -> Visit:
    """Made by the gate."""
    visit = request.scope["state"]["visit"]
    assert isinstance(visit, Visit)
    return visit


def note_failure(scope: Scope, status: int) -> None:
    """Of a stream whose answer has begun. `status`: that it would have had."""
    visit = scope.get("state", {}).get("visit")
    if isinstance(visit, Visit):
        visit.has_failed = visit.has_failed or status >= SERVER_ERROR
