"""The gate before all routes: finds out whose key a request carries, before a byte of its body is read. Strangers see
the public paths and nothing else, not even which routes there are. What an identity may do, routes say themselves.
"""

import logging
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from anyio import CancelScope
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access.admission import Admission
from api.access.keyring import KeyRing
from api.access.visit import Visit
from api.errors import millrace_error
from core.access import KEY_MARK, LOCAL_IDENTITY, Identity
from core.errors import Forbidden, MillraceError, Unauthenticated, Unavailable

logger = logging.getLogger(__name__)

COOKIE = "millrace_key"
LOGIN_PATH = "/login"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# What proxies add. Whoever comes through one may be anybody, however near the proxy is.
FORWARDED_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


class Gate:
    """ASGI middleware. Puts the identity into `scope["state"]`."""

    def __init__(self, app: ASGIApp, *, public_paths: frozenset[str], is_key_required: bool) -> None:
        self._app = app
        self._public_paths = public_paths
        self._is_key_required = is_key_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        assert scope["type"] == "http", "routes of other kinds would pass the gate unseen"
        request = Request(scope)
        if scope["path"] not in self._public_paths:
            try:
                visit = Visit(await self._identify(request))
            except MillraceError as error:
                await _refusal(request, error)(scope, receive, send)
                return
            scope.setdefault("state", {}).update(identity=visit.identity, visit=visit)
            await self._accompany(visit, scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _accompany(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        """Adds the headers that the visit was given on its way, and settles it when the answer was sent."""
        status = 500

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *encoded(visit.headers)]
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        finally:
            if visit.is_to_be_settled(status):
                admission: Admission = scope["app"].state.context.admission
                with CancelScope(shield=True):
                    await run_in_threadpool(_settle, admission, visit)

    async def _identify(self, request: Request) -> Identity:
        """Raises Unauthenticated, Forbidden, Unavailable."""
        bearer = bearer_key(request)
        if bearer is None:
            check_same_site(request)
        key = bearer or request.cookies.get(COOKIE)
        if not self._needs_key(request) and not (key or "").startswith(KEY_MARK):
            check_same_site(request)
            return LOCAL_IDENTITY
        if key is None:
            raise Unauthenticated("expected an API key: send `Authorization: Bearer mr_…`")
        ring: KeyRing = request.app.state.context.keys
        identity = await ring.find(key)
        if identity is None:
            raise Unauthenticated("this API key is unknown, expired or revoked; `millrace keys ls` lists keys")
        return identity

    def _needs_key(self, request: Request) -> bool:
        return self._is_key_required or any(name in request.headers for name in FORWARDED_HEADERS)


def bearer_key(request: Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def check_same_site(request: Request) -> None:
    """Refuses what a page of another site has a browser send where no key in a header shows that it is meant.
    Raises Forbidden."""
    if request.method in SAFE_METHODS:
        return
    site = request.headers.get("sec-fetch-site", "none")
    origin = request.headers.get("origin")
    is_own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if site not in ("none", "same-origin") or not is_own:
        raise Forbidden("a page of another site may not send this; programs send `Authorization: Bearer mr_…`")


def _settle(admission: Admission, visit: Visit) -> None:
    try:
        admission.finish(visit)
    except Unavailable as error:
        logger.warning("a request was not settled: %s", error.message)


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _refusal(request: Request, error: MillraceError) -> Response:
    """A person at a browser is led to the page for signing in."""
    is_page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
    if isinstance(error, Unauthenticated) and is_page and bearer_key(request) is None:
        return RedirectResponse(f"{LOGIN_PATH}?next={quote(request.url.path)}", status_code=303)
    return millrace_error(request, error)
