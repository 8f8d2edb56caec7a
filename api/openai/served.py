"""Which models are served, as every online request asks: believed for a moment."""

import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from core.errors import NotFound
from core.openai.request import check_kind
from db import models
from db.connection import Database

FRESH_SECONDS = 0.25


class Served:
    """`clock`: monotonic seconds."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._kinds: dict[str, tuple[str | None, float]] = {}  # with the time when each was read

    def check(self, endpoint: str, model: str) -> None:
        """Raises NotFound where no engine serves it, InvalidRequest where it is of another kind."""
        kind, read_at = self._kinds.get(model, (None, float("-inf")))
        now = self._clock()
        if now - read_at >= FRESH_SECONDS:
            with self._database.begin() as session:
                kind = _kind(session, model)
            self._kinds[model] = kind, now
        check_kind(endpoint, model, kind)


def _kind(session: Session, name: str) -> str | None:
    model = models.find_served(session, name)
    if model is None:
        raise NotFound(
            f"model {name!r} is not served here; GET /v1/models lists those that are",
            param="model",
            code="model_not_found",
        )
    return model.kind
