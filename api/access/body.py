"""Bounds the size of request bodies, whether they announce it or not: large for uploads, small for everything else."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import TOO_LARGE, RequestTooLarge, error_response
from core.openai.batchfile import MAX_LINE_BYTES

ENVELOPE_BYTES = 1024 * 1024  # multipart boundaries and form fields around a file of the largest size
UPLOAD_PATH = "/v1/files"


class BodyLimit:
    """ASGI middleware. An announced length over the limit is refused unread; a longer stream is cut off."""

    def __init__(self, app: ASGIApp, *, max_file_bytes: int) -> None:
        self._app = app
        self._max_file_bytes = max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/") == UPLOAD_PATH
        max_bytes = self._max_file_bytes if is_upload else MAX_LINE_BYTES
        hint = "split the file" if is_upload else "submit large work as a batch"
        error = RequestTooLarge(f"expected a body of at most {max_bytes:,} bytes; {hint}")
        limit = max_bytes + (ENVELOPE_BYTES if is_upload else 0)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            await error_response(TOO_LARGE, error.code, error.detail)(scope, receive, send)
            return
        await self._app(scope, _counting(receive, limit, error), send)


def _counting(receive: Receive, limit: int, error: RequestTooLarge) -> Receive:
    num_bytes = 0

    async def counted() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            raise error
        return message

    return counted
