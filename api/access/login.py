"""`/login`: where a person at a browser hands over a key, which becomes a cookie that no script and no other site can
use. `/logout` forgets it.
"""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.templating import Jinja2Templates

from api.access.gate import COOKIE, LOGIN_PATH
from api.access.scopes import PUBLIC
from api.context import Ctx

router = APIRouter(include_in_schema=False)

COOKIE_SECONDS = 30 * 24 * 3600
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
_templates = Jinja2Templates(Path(__file__).resolve().parent.parent / "templates")


@router.get(LOGIN_PATH, response_class=HTMLResponse, dependencies=[PUBLIC])
def login_page(request: Request) -> Response:
    return _page(request, is_refused=False)


@router.post(LOGIN_PATH, dependencies=[PUBLIC])
async def login(context: Ctx, request: Request, key: Annotated[str, Form(max_length=200)]) -> Response:
    if await context.keys.find(key.strip()) is None:
        return _page(request, is_refused=True)
    response = RedirectResponse(_own_path(request.query_params.get("next", "/")), status_code=303)
    response.set_cookie(
        COOKIE,
        key.strip(),
        max_age=COOKIE_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout", dependencies=[PUBLIC])
def logout() -> Response:
    response = RedirectResponse(LOGIN_PATH, status_code=303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def _own_path(target: str) -> str:
    """Nobody is sent to another site: `//host` and `/\\host` are ones to a browser."""
    is_own = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if is_own else "/"


def _page(request: Request, *, is_refused: bool) -> Response:
    return _templates.TemplateResponse(
        request,
        "login.html",
        {"is_refused": is_refused},
        status_code=401 if is_refused else 200,
        headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-store"},
    )
