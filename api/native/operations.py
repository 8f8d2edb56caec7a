"""`/api/v1/queues/pause` and `resume`: holding a model, a queue, or both, and letting them go on."""

from datetime import datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from api.access.scopes import ADMIN
from api.context import Ctx
from core.errors import NotFound
from core.job import ServiceClass
from db import models, pauses
from db.native import queues
from db.pauses import EVERY

router = APIRouter(prefix="/api/v1/queues", tags=["operations"])


class Which(BaseModel):
    """What is left out is all: every model, every queue."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"model": "millrace/tiny"}})

    model: str | None = None
    queue: Literal["online", "batch", "heavy"] | None = None

    @property
    def service_class(self) -> str:
        return EVERY if self.queue is None else ServiceClass(self.queue).value

    @property
    def model_or_every(self) -> str:
        return EVERY if self.model is None else self.model


class Pause(BaseModel):
    """`*` is every model, or every queue."""

    queue: str
    model: str
    paused_at: datetime


class StillRunning(BaseModel):
    """Of a queue and model that is held, what had begun. num_rows: that have no outcome yet in the chunks that run, of
    which those that the engine has are finished; a job of the queue `heavy` is one row. jobs: ten of them at most."""

    queue: str
    model: str
    num_rows: int
    num_jobs: int
    jobs: list[str]


class Pauses(BaseModel):
    """num_lifted: how many pauses were lifted."""

    object: Literal["list"] = "list"
    data: list[Pause]
    still_running: list[StillRunning]
    num_lifted: int = 0


@router.post("/pause", summary="Hold a model, a queue, or both", dependencies=[ADMIN])
def pause(context: Ctx, body: Which) -> Pauses:
    """Nothing new is started, and what the device has begun goes on to its end: rows that the engine has, whose chunks
    are then handed back, and warming, benchmark and quantization jobs (the queue `heavy`). `still_running` tells what
    that is. 404 for a model that nobody serves."""
    with context.database.begin() as session:
        if body.model is not None and models.find_served(session, body.model) is None:
            raise NotFound(f"model {body.model!r} is not served here", param="model")
        pauses.pause(session, service_class=body.service_class, model=body.model_or_every)
        return _pauses(session)


@router.post("/resume", summary="Let a model, a queue, or both go on", dependencies=[ADMIN])
def resume(context: Ctx, body: Which) -> Pauses:
    """Lifts every pause within these bounds; a wider one stays, as the answer shows."""
    with context.database.begin() as session:
        num_lifted = pauses.resume(session, service_class=body.service_class, model=body.model_or_every)
        return _pauses(session, num_lifted)


def _pauses(session: Session, num_lifted: int = 0) -> Pauses:
    held = [
        Pause(queue=row.service_class, model=row.model, paused_at=row.paused_at) for row in pauses.list_pauses(session)
    ]
    running = [
        StillRunning(
            queue=one.service_class,
            model=one.model,
            num_rows=one.num_rows,
            num_jobs=one.num_jobs,
            jobs=one.jobs,
        )
        for one in queues.still_running(session)
    ]
    return Pauses(data=held, still_running=running, num_lifted=num_lifted)
