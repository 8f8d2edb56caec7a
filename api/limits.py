"""Bounds the size of request bodies, whether they announce it or not."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import TOO_LARGE, RequestTooLarge, error_response

ENVELOPE_BYTES = 1024 * 1024  # multipart boundaries and form fields around a file of the largest size


class BodyLimit:
    """ASGI middleware. An announced length over the limit is refused unread; a longer stream is cut off."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes + ENVELOPE_BYTES
        self._message = f"expected a body of at most {max_bytes:,} bytes; split the file"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await error_response(TOO_LARGE, RequestTooLarge.code, self._message)(scope, receive, send)
            return
        await self._app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise RequestTooLarge(self._message)
            return message

        return counted
