"""The contract of all routes: `/openapi.json` for programs, `/docs` for people. The page is written here and loads
nothing from anywhere, so it works without a network and tells nobody that it was read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from starlette.templating import Jinja2Templates

from api.access.login import PAGE_POLICY
from api.access.scopes import READ

router = APIRouter(include_in_schema=False)

METHODS = ("get", "post", "put", "patch", "delete")
_templates = Jinja2Templates(Path(__file__).resolve().parents[1] / "templates")


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    summary: str
    description: str
    parameters: list[dict[str, Any]]


@router.get("/openapi.json", dependencies=[READ])
def openapi(request: Request) -> dict[str, Any]:
    app: FastAPI = request.app
    return app.openapi()


@router.get("/docs", response_class=HTMLResponse, dependencies=[READ])
def docs(request: Request) -> HTMLResponse:
    app: FastAPI = request.app
    return _templates.TemplateResponse(
        request,
        "docs.html",
        {"groups": operations_by_tag(app.openapi()), "version": app.version},
        headers={"Content-Security-Policy": PAGE_POLICY},
    )


def operations_by_tag(document: dict[str, Any]) -> dict[str, list[Operation]]:
    groups: dict[str, list[Operation]] = {}
    for path, item in document["paths"].items():
        for method in filter(item.__contains__, METHODS):
            operation = item[method]
            shown = Operation(
                method.upper(),
                path,
                operation.get("summary", ""),
                operation.get("description", ""),
                operation.get("parameters", []),
            )
            groups.setdefault(next(iter(operation.get("tags", ())), "other"), []).append(shown)
    return groups
