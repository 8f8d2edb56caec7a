"""`/v1/models`: the models that some engine serves."""

from typing import Any

from fastapi import APIRouter

from api.access.scopes import READ
from api.context import Ctx, Tenant
from core.errors import NotFound
from db import models
from db.tables import ModelRow

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List the models that are served", dependencies=[READ])
def list_models(context: Ctx, tenant: Tenant) -> dict[str, Any]:
    with context.database.begin() as session:
        rows = models.list_served(session)
    return {"object": "list", "data": [model_object(row) for row in rows]}


@router.get("/{name:path}", summary="Show a model", dependencies=[READ])
def get_model(context: Ctx, tenant: Tenant, name: str) -> dict[str, Any]:
    with context.database.begin() as session:
        row = models.find_served(session, name)
    if row is not None:
        return model_object(row)
    raise NotFound(f"model {name!r} is not served here; GET /v1/models lists those that are", code="model_not_found")


def model_object(row: ModelRow) -> dict[str, Any]:
    return {
        "id": row.name,
        "object": "model",
        "created": int(row.created_at.timestamp()),
        "owned_by": "millrace",
    }
