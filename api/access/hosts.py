"""To which names requests may be addressed. Where no key is needed, a web page that has its own name resolve to this
machine must not get in.
"""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import error_response

BAD_REQUEST = 400
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._~%-]+)(:[0-9]*)?", re.IGNORECASE)


class TrustedHosts:
    """ASGI middleware. allowed: names, or `*.name` for all below it."""

    def __init__(self, app: ASGIApp, *, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = [name.lower() for name in allowed]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_allowed(host := Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        message = (
            f"expected a request to a loopback address or a name in MILLRACE_TRUSTED_HOSTS, got one to {host[:200]!r}"
        )
        await error_response(BAD_REQUEST, "invalid_host", message)(scope, receive, send)

    def _is_allowed(self, header: str) -> bool:
        match = _HOST.fullmatch(header)
        if match is None:
            return False
        host = match[1].lower()
        return any(host == name or name == "*" or _is_below(host, name) for name in self._allowed)


def _is_below(host: str, pattern: str) -> bool:
    return pattern.startswith("*.") and host.endswith(pattern[1:])
