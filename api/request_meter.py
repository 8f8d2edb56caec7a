"""Counts the requests of this API process and how long they took, by route: ASGI middleware."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
UNKNOWN_ROUTE = "unknown"
NO_ANSWER = 499


class Meters:
    """Of one process. Routes are named by their patterns, so there are only so many."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route")
        self.requests = Counter(
            "millrace_http_requests", "Requests that were answered.", (*labels, "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "millrace_http_request_seconds",
            "Until the last byte of the answer.",
            labels,
            buckets=BUCKETS,
            registry=self.registry,
        )


class RequestMeter:
    def __init__(self, app: ASGIApp, *, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), NO_ANSWER

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            method = scope["method"] if route != UNKNOWN_ROUTE else UNKNOWN_ROUTE
            self._meters.requests.labels(method, route, status).inc()
            self._meters.seconds.labels(method, route).observe(time.monotonic() - began)
