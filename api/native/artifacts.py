"""`/api/v1/artifacts`: the models that quantization jobs made: what there is, how large, what is served from it; and
removing one."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

from api.access.scopes import READ, SUBMIT
from api.context import Ctx, Tenant, page
from db import models
from db.models import normal
from db.native import artifacts
from db.tables import ArtifactRow

router = APIRouter(prefix="/api/v1/artifacts", tags=["jobs"])

PAGE_ARTIFACTS, MOST_ARTIFACTS = 20, 100

_ID = "art_0a1b2c3d4e5f60718293a4b5"
_EXAMPLE: JsonDict = {
    "id": _ID,
    "object": "artifact",
    "name": "millrace/tiny-nf4",
    "kind": "quantization",
    "model": "millrace/tiny",
    "node": "gpu-box",
    "directory": "/var/lib/millrace/artifacts/job_0a1b2c3d4e5f60718293a4b5",
    "num_bytes": 1_482_311,
    "served_as": ["small on gpu-box"],
    "job_id": "job_0a1b2c3d4e5f60718293a4b5",
    "created_at": "2026-11-25T10:00:00Z",
    "details": {"method": "nf4", "perplexity_before": 104.2, "perplexity_after": 106.9},
}


class Artifact(BaseModel):
    """model: what it was made of. directory: on `node`, which can serve it by `millrace up --model NAME=DIRECTORY`.
    num_bytes: on its disk. served_as: `model on node`, for each that serves a model from it now. details: what was
    measured when it was made."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    object: Literal["artifact"] = "artifact"
    name: str
    kind: str
    model: str
    node: str
    directory: str
    num_bytes: int
    served_as: list[str]
    job_id: str
    created_at: datetime
    details: dict[str, Any]


class ArtifactPage(BaseModel):
    """total_bytes: of all artifacts of the tenant, those on other pages included."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "object": "list",
                "data": [_EXAMPLE],
                "first_id": _ID,
                "last_id": _ID,
                "has_more": False,
                "total_bytes": 1_482_311,
            }
        }
    )

    object: Literal["list"] = "list"
    data: list[Artifact]
    first_id: str | None
    last_id: str | None
    has_more: bool
    total_bytes: int


class ArtifactDeleted(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {"id": _ID, "object": "artifact.deleted", "deleted": True}})

    id: str
    object: Literal["artifact.deleted"] = "artifact.deleted"
    deleted: Literal[True] = True


@router.get("", summary="List the models that jobs made, newest first", dependencies=[READ])
def list_artifacts(
    context: Ctx,
    tenant: Tenant,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ARTIFACTS)] = PAGE_ARTIFACTS,
) -> ArtifactPage:
    """`after`: the `last_id` of the page before."""
    with context.database.begin() as session:
        found = artifacts.list_artifacts(session, tenant=tenant, after=after, limit=limit + 1)
        served = models.served_from(session)
    shown = [_shown(row, served).model_dump() for row in found.rows]
    return ArtifactPage.model_validate({**page(shown, limit), "total_bytes": found.total_bytes})


@router.get("/{artifact_id}", summary="Show a model that a job made", dependencies=[READ])
def get_artifact(context: Ctx, tenant: Tenant, artifact_id: str) -> Artifact:
    with context.database.begin() as session:
        return _shown(artifacts.find(session, artifact_id, tenant=tenant), models.served_from(session))


@router.delete("/{artifact_id}", summary="Delete a model that a job made", dependencies=[SUBMIT])
def delete_artifact(context: Ctx, tenant: Tenant, artifact_id: str) -> ArtifactDeleted:
    """It is gone at once, and its directory once its node has no heavy job to run before. 409 while a model is served
    from it; the message says where."""
    with context.database.begin() as session:
        row = artifacts.remove(session, artifact_id, tenant=tenant)
    context.broker.remove_artifacts(row.node)
    return ArtifactDeleted(id=artifact_id)


def _shown(row: ArtifactRow, served: Mapping[str, Sequence[str]]) -> Artifact:
    return Artifact(
        id=row.id,
        name=row.name,
        kind=row.kind,
        model=row.source_model,
        node=row.node,
        directory=row.directory,
        num_bytes=row.num_bytes,
        served_as=list(served.get(normal(row.directory), ())),
        job_id=row.job_public_id,
        created_at=row.created_at,
        details=row.details,
    )
